"""Turns batches of images into statistics of their Inception features.

    extractor = Extractor(Settings(tap=2048), batch_size=16, mesh=mesh)
    statistics = extractor.statistics(batches)

Images are quantized, resized and looked at by Inception: the resizing is
compiled for each image size, the network once, for batches of one size split
over the mesh's devices.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from vit22b_jax.fid import inception_resize, inception_weights, statistics
from vit22b_jax.models import inception

_LARGE = 2**20  # Pixels of an image that the host resizes.
TAPS = tuple(int(tap) for tap in inception.TAPS if tap.isdigit())

# {'image': [B, H, W, 3] or B images [h, w, 3] of any sizes, 'mask': [B]}
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Says how features are computed; equal settings make distances compare.

  Attributes:
    weights: '' for the public release, the path of a PyTorch file, or
      'random:SEED'.
    tap: 64, 192, 768 or 2048.
    resize: 'clean', 'tf1' or 'torch'; see `inception_resize`.
    quantize: what float images become first: uint8 by 'round' or 'truncate',
      or 'none'.
  """

  weights: str = ''
  tap: int = 2048
  resize: str = 'clean'
  quantize: str = 'round'

  @classmethod
  def of(cls, section: ConfigDict) -> 'Settings':
    """Returns the settings in the `fid` section of a config."""
    names = (field.name for field in dataclasses.fields(cls))
    return cls(**{name: section[name] for name in names})


class Extractor:
  """Computes features.

  Args:
    settings: how.
    batch_size: images at a time over all devices and processes; is rounded up
      to a multiple of the devices.
    mesh: devices that share each batch; this process's first by default.

  Attributes:
    facts: what belongs beside every distance: settings and weights. Those that
      are `calibrated` are the public ones; a distance with any other is
      "uncalibrated" wherever it is printed.

  Raises:
    UserError: the weights can't be had.
  """

  def __init__(
    self, settings: Settings, batch_size: int = 16, mesh: Mesh | None = None
  ):
    self.settings = settings
    if mesh is None:
      mesh = Mesh(np.array(jax.local_devices()[:1]), ('data',))
    self.batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    tap = str(settings.tap)
    params, digest = inception_weights.load(settings.weights, (tap,))
    self.facts = {
      'tap': settings.tap,
      'resize': settings.resize,
      'quantize': settings.quantize,
      'weights_sha256': digest,
      'calibrated': digest == inception_weights.SHA256,
    }
    whole = NamedSharding(mesh, PartitionSpec())
    self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._params = jax.device_put(params, whole)
    model = inception.Inception((tap,))
    scale = inception_resize.INPUT_SCALES.get(settings.resize, 1)

    def apply(params, images, mask):
      return model.apply({'params': params}, images * scale)[tap], mask

    self._apply = jax.jit(
      apply,
      in_shardings=(whole, self._split, self._split),
      out_shardings=whole,  # so that every process has the features of all
    )
    self._prepare = jax.jit(
      functools.partial(prepare, settings=settings),
      in_shardings=self._split,
      out_shardings=self._split,
    )

  def statistics(self, batches: Iterable[Batch]) -> statistics.Statistics:
    """Computes the statistics of all images of some batches.

    Args:
      batches: of 'image', uint8 or float in [0, 255], [B, H, W, 3] (on the
        host or on devices, any B) or a list of uint8 [H, W, 3] of any sizes;
        and 'mask' [B], zero for padding (no mask: every image counts). In
        several processes: each one's part, or global arrays.

    Raises:
      UserError: a feature is NaN or infinite.
    """
    found = itertools.chain.from_iterable(map(self.features, batches))
    nothing = np.zeros((0, self.settings.tap), np.float32)
    features = np.concatenate([nothing, *found])
    return statistics.Statistics.of(features, self.facts)

  def features(self, batch: Batch) -> Iterator[Float[np.ndarray, 'n D']]:
    """Yields features of the images of a batch that aren't padding."""
    images = batch['image']
    mask = batch.get('mask')
    mask = np.ones(len(images), np.float32) if mask is None else mask
    ready = False
    if isinstance(images, list | tuple):
      # Several processes can't know that they all have images of one size.
      shapes = {image.shape for image in images}
      large = max(image.size for image in images) > 3 * _LARGE
      ready = large or len(shapes) > 1 or jax.process_count() > 1
      if ready:
        images = [inception_resize.one(i, self.settings.resize) for i in images]
      images = np.stack(images)
    for piece, valid in zip(self._cut(images), self._cut(mask), strict=True):
      resized = piece if ready else self._prepare(piece)
      found, valid = self._apply(self._params, resized, valid)
      yield np.asarray(found)[np.asarray(valid) > 0]

  def _cut(
    self, array: Shaped[Array, 'B ...'] | Shaped[np.ndarray, 'B ...']
  ) -> Iterator[Shaped[Array, 'S ...']]:
    """Yields pieces of the compiled size, the last one padded with zeros."""
    if isinstance(array, jax.Array):
      xnp, size = jnp, self.batch_size
    else:  # this process's part of each
      xnp, size = np, self.batch_size // jax.process_count()
    for start in range(0, len(array), size):
      piece = array if len(array) == size else array[start : start + size]
      if len(piece) < size:
        rest = [(0, size - len(piece))] + [(0, 0)] * (piece.ndim - 1)
        piece = xnp.pad(piece, rest)
      if xnp is jnp:
        yield jax.device_put(piece, self._split)
      else:
        yield jax.make_array_from_process_local_data(self._split, piece)


def prepare(
  images: Shaped[Array, 'B H W 3'], settings: Settings
) -> Float[Array, 'B 299 299 3']:
  """Quantizes and resizes a batch, uint8 or float in [0, 255]."""
  x = images.astype(jnp.float32)
  if settings.quantize != 'none' and images.dtype != jnp.uint8:
    near = jnp.rint if settings.quantize == 'round' else jnp.floor
    x = near(x).clip(0, 255)
  return inception_resize.batch(x, settings.resize)
