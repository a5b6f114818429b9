"""The package from Python: models by name, and models of finished runs.

predictor = load('runs/cifar10_vit22b_s')
predictor.class_names, predictor.predict('cat.jpg')

>>> import jax.numpy as jnp
>>> model = create('vit22b', variant='Ti', num_classes=10, patch_size=4)
>>> images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
>>> logits, _ = jax.eval_shape(
...   lambda x: model.init_with_output(jax.random.key(0), x), images
... )
>>> logits.shape
(8, 10)
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from PIL import Image

from vit22b_jax import errors, tasks
from vit22b_jax.config import ConfigDict
from vit22b_jax.data import augment, decode
from vit22b_jax.errors import UserError
from vit22b_jax.models import vit
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import checkpoint, formats, runs, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base
from vit22b_jax.training import losses

__all__ = ['Predictor', 'Translator', 'UserError', 'create', 'load']

_BATCH = 64  # images a program sees at once

Images = (
  UInt8[np.ndarray, 'B H W 3']
  | UInt8[np.ndarray, 'H W 3']
  | os.PathLike
  | str
  | Sequence[Any]
)


def create(
  block: str = 'vit22b',
  variant: str = 'S',
  *,
  num_classes: int = 1000,
  patch_size: int = 16,
  **fields: Any,
) -> vit.ViT:
  """Returns a linen module by name.

  Args:
    block: a row of the table of blocks: 'vit', 'vit22b', 'vit22b_mlp_norm',
      'released_vit', 'released', 'released_unnormed'.
    variant: 'Ti', 'S', 'B', 'L', 'H' or '22B'.
    num_classes: outputs; 0 for a model without a head, which returns features.
    patch_size: pixels a side; the image size must be a multiple.
    **fields: any other key of a config's `model` section, such as
      `pool='mean'` or `qk_norm=False`; None and an absent key mean what they
      mean in a config.

  Returns:
    A module that maps float32 images [B, H, W, 3] to logits [B, num_classes],
    or to features [B, D].

  Raises:
    UserError: an unknown name, or sizes that don't fit together.
  """
  if fields.get('precision') is None:
    fields['precision'] = 'default'  # as in the configs
  return vit.build(
    block, variant, num_classes=num_classes, patch_size=patch_size, **fields
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
  """A trained classifier that takes images as they are.

  Images are uint8 in [0, 255], an array [B, H, W, 3] or [H, W, 3], or paths of
  files, or a list of either. They may have any size: the central square is
  resized and normalized as in evaluations.

  Attributes:
    model: the linen module.
    variables: its weights, for `model.apply(variables, normalized)`.
    class_names: in the order of the outputs.
    image_size: pixels a side that the model sees.
    load_size: pixels a side before the central crop to that.
    eval_crop: the share of that side which is resized to `image_size` instead;
      None for the crop.
    mean: of each channel in [0, 1], subtracted.
    std: of each channel, then divided by.
    loss: that it was trained with: 'softmax', or 'sigmoid', with which each
      class has a probability of its own.
  """

  model: vit.ViT = dataclasses.field(repr=False)
  variables: dict[str, Any] = dataclasses.field(repr=False)
  class_names: tuple[str, ...]
  image_size: int
  load_size: int
  eval_crop: float | None
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  loss: str

  def predict(self, images: Images) -> Float[np.ndarray, 'B C']:
    """Returns the probability of each class.

    Raises:
      UserError: a file can't be read, or an array isn't of images.
    """
    logits = self._in_batches(self.model, images)
    return np.asarray(losses.probabilities(logits, self.loss))

  def features(self, images: Images) -> Float[np.ndarray, 'B D']:
    """Returns the pooled output of the last block, which the head gets."""
    return self._in_batches(self.model.clone(num_classes=0), images)

  def attention(self, images: Images) -> Float[np.ndarray, 'B depth N L L']:
    """Returns attention maps: image, layer, head, query token, key token."""
    return self._in_batches(self.model, images, maps=True)

  def preprocess(self, images: Images) -> Float[np.ndarray, 'B S S 3']:
    """Returns images as the model sees them: square, normalized float32."""
    pixels = _load_images(images, self.load_size)
    if self.eval_crop or self.load_size != self.image_size:
      pixels = np.stack([self._cut(image) for image in pixels])
    pixels = pixels / np.float32(255)
    return (pixels - np.float32(self.mean)) / np.float32(self.std)

  @functools.cached_property
  def _cut(self) -> Callable[..., Array]:
    return jax.jit(
      lambda x: augment.eval_images(x[None], self.image_size, self.eval_crop)[0]
    )

  def _in_batches(
    self, model: vit.ViT, images: Images, maps: bool = False
  ) -> np.ndarray:
    inputs = self.preprocess(images)
    found = []
    for start in range(0, len(inputs), _BATCH):
      batch = inputs[start : start + _BATCH]
      # One compiled shape for all batches but those of a single call.
      spare = _BATCH - len(batch) if start else 0
      padded = np.pad(batch, ((0, spare), *((0, 0),) * 3))
      outputs = _apply(model, self.variables, padded, maps)
      found.append(np.asarray(outputs)[: len(batch)])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnames=('model', 'maps'))
def _apply(model: vit.ViT, variables: Any, images: Array, maps: bool) -> Array:
  """Returns a model's outputs or, with `maps`, its attention maps."""
  if not maps:
    return model.apply(variables, images)
  _, inside = model.apply(variables, images, capture=True)
  return inside['attn_map'].swapaxes(0, 1)


def _load_images(images: Images, side: int) -> UInt8[np.ndarray, 'B S S 3']:
  """Returns files or arrays of any size as one array of squares."""
  if isinstance(images, str | os.PathLike):
    return _load_file(images, side)[None]
  if isinstance(images, list | tuple) and images:
    return np.concatenate([_load_images(image, side) for image in images])
  fitted = [
    decode.fit(Image.fromarray(image), side) for image in _as_batch(images)
  ]
  return np.stack([np.asarray(image) for image in fitted])


def _as_batch(images: Any) -> UInt8[np.ndarray, 'B H W 3']:
  """Returns one image or several as several; raises UserError for others."""
  array = np.asarray(images)
  fits = array.ndim in (3, 4) and array.shape[-1] == 3 and array.size
  if not fits or array.dtype != np.uint8:
    raise errors.UserError(
      'Expected uint8 images [B, H, W, 3] in [0, 255], at least one, or one '
      'image [H, W, 3]; a classifier also takes paths of files. This is '
      f'{_describe(images)}'
    )
  return array[None] if array.ndim == 3 else array


def _describe(images: Any) -> str:
  """Says what isn't an array of images, and how it becomes one."""
  if not hasattr(images, 'dtype'):
    return f'{type(images).__name__}.'
  shape, hint = list(images.shape), ''
  if np.dtype(images.dtype).kind == 'f':
    hint = ' Scale to [0, 255] first: (255 * x).round().astype("uint8").'
  elif len(shape) == 2 or shape[-1:] == [1]:
    hint = ' Repeat the gray channel: np.repeat(x.reshape(H, W, 1), 3, -1).'
  elif shape[-3:-2] == [3]:
    hint = ' Channels come last: np.moveaxis(x, -3, -1).'
  return f'{images.dtype}{shape}.{hint}'


def _load_file(path: epath.PathLike, side: int) -> UInt8[np.ndarray, 'S S 3']:
  workdir_lib.validate_place(path)
  try:
    return decode.square(epath.Path(path).read_bytes(), side)
  except decode.CorruptImage as error:
    raise errors.UserError(f'{path} is not an image: {error}.') from None
  except OSError as error:
    raise errors.UserError(f'{path}: {error.strerror or error}.') from None


@dataclasses.dataclass(frozen=True, eq=False)
class Translator:
  """The trained generators of two domains.

  Attributes:
    model: the linen module of either generator, for images in [-1, 1].
    variables: parameters by name:
      `model.apply({'params': variables['gen_ab']}, images)`.
    domain_names: of a and b.
    translate: (images uint8 [B, H, W, 3] or one [H, W, 3], 'a2b' or 'b2a') ->
      uint8 [B, H, W, 3]; the generator's patches must divide the sides.
  """

  model: nn.Module = dataclasses.field(repr=False)
  variables: dict[str, Any] = dataclasses.field(repr=False)
  domain_names: tuple[str, str]
  translate: Callable[[UInt8[np.ndarray, 'B H W 3'], str], np.ndarray]


def load(workdir: epath.PathLike) -> Predictor | Translator:
  """Loads a run's model and weights: the best by validation, or the last.

  Args:
    workdir: a run's folder, local or `gs://`.

  Returns:
    A `Predictor` of a classification, a `Translator` of a translation, with
    weights on the devices at hand.

  Raises:
    UserError: the folder isn't a run's, or has no checkpoint.
  """
  config = runs.read_config(workdir)
  task, manager = open_run(workdir, config)
  _, variables, _ = evaluate.restore(task, manager, config.eval.checkpoint)
  manager.close()
  names = tuple(task.names)
  if config.task == 'translation':

    def translate(images, direction='a2b'):
      errors.validate_choice('direction', direction, ('a2b', 'b2a'))
      made = task.translate(variables, _as_batch(images), direction)
      return np.asarray(made)

    return Translator(task.model, variables, names, translate)
  data = config.data
  sizes = data.image_size, data.load_size or data.image_size
  inputs = (*sizes, data.eval_crop, data.mean, data.std)
  return Predictor(task.model, variables, names, *inputs, config.loss.kind)


def open_run(
  workdir: epath.PathLike, config: ConfigDict, data: Any | None = None
) -> tuple[base.Task, checkpoint.Manager]:
  """Opens a run's task and its checkpoints, on as many devices as divide it.

  Raises:
    UserError: the folder lacks the names of the classes.
  """
  place = epath.Path(workdir) / workdir_lib.CLASSES
  names = formats.read_json(place, list)
  if not names:
    raise errors.UserError(
      f'{workdir} has no classes.json with names: its training never began. '
      f'Train first, with --config=... --workdir={workdir}.'
    )
  task = tasks.TASKS[config.task](config, _mesh(config), names, data)
  manager = checkpoint.Manager(
    workdir, scores=evaluate.scores(task.evaluator, workdir), read_only=True
  )
  return task, manager


def _mesh(config: ConfigDict) -> jax.sharding.Mesh:
  """Makes a mesh of today's devices, which need not divide a run's batches.

  Weights are split as in training, as far as these devices bear it.
  """
  batch = tasks.TASKS[config.task].images_at_once(config)
  batch = math.gcd(batch, config.eval.batch_size or batch)
  for options in (sharding.mesh_options(config), {'preset': config.sharding}):
    with contextlib.suppress(errors.UserError):
      whole = sharding.make_mesh(**options)
      mesh = sharding.part_for_batch(whole, batch)
      sharding.validate_batch_size(batch, mesh)
      return mesh
  return sharding.part_for_batch(sharding.make_mesh(), batch)
