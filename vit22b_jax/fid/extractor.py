"""Batches of images -> statistics of their Inception features.

    extractor = Extractor(Settings(tap=2048), batch_size=16, mesh=mesh)
    statistics = extractor.statistics(batches)

Quantise, resize, Inception: the resizing is compiled for each image size, the
network once, for batches of one size split over the mesh's devices.
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

from vit22b_jax import errors
from vit22b_jax.fid import resize, statistics, weights
from vit22b_jax.models import inception

TAPS = tuple(int(tap) for tap in inception.TAPS if tap.isdigit())
QUANTISE = ('round', 'truncate', 'none')

_ROWS = 1024  # features summed at a time

# {'image': [B, H, W, 3] or B images [h, w, 3] of any sizes, 'mask': [B]}
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How features are computed; two distances compare when these are equal.

  Attributes:
    weights: '' for the public release, the path of a PyTorch file, or
      'random:SEED'.
    tap: 64, 192, 768 or 2048.
    resize: 'clean', 'tf1' or 'torch'; see `resize`.
    quantise: what float images become first: uint8 by 'round' or 'truncate',
      or 'none'.
  """

  weights: str = ''
  tap: int = 2048
  resize: str = 'clean'
  quantise: str = 'round'

  def check(self) -> None:
    """Raises UserError for a value that doesn't exist."""
    for name, known in (
      ('tap', TAPS),
      ('resize', resize.MODES),
      ('quantise', QUANTISE),
    ):
      value = getattr(self, name)
      if value not in known:
        raise errors.UserError(
          f'fid.{name}={value!r}: expected one of {", ".join(map(str, known))}.'
        )


class Extractor:
  """Computes features.

  Args:
    settings: how.
    batch_size: images at a time over all devices and processes; is rounded up
      to a multiple of the devices.
    mesh: devices that share each batch; this process's first by default.

  Attributes:
    settings: how.
    batch_size: as it is compiled.
    weights_sha256: of the weights.
    calibrated: whether these are the public weights; a distance with any other
      is "uncalibrated" wherever it is printed.

  Raises:
    UserError: a setting doesn't exist, or the weights can't be had.
  """

  def __init__(
    self, settings: Settings, batch_size: int = 16, mesh: Mesh | None = None
  ):
    settings.check()
    self.settings = settings
    if mesh is None:
      mesh = Mesh(np.array(jax.local_devices()[:1]), ('data',))
    self._mesh = mesh
    self.batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    tap = str(settings.tap)
    found = weights.load(settings.weights, (tap,))
    self.weights_sha256 = found.sha256
    self.calibrated = found.calibrated
    whole = NamedSharding(mesh, PartitionSpec())
    self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._params = jax.device_put(found.params, whole)
    model = inception.Inception((tap,))

    def apply(params, images, mask):
      return model.apply({'params': params}, images)[tap], mask

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

  def facts(self) -> dict[str, Any]:
    """What belongs beside every distance: tap, resize, quantise, weights."""
    return {
      'tap': self.settings.tap,
      'resize': self.settings.resize,
      'quantise': self.settings.quantise,
      'weights_sha256': self.weights_sha256,
      'calibrated': self.calibrated,
    }

  def statistics(
    self, batches: Iterable[Batch], *, keep_features: bool = True
  ) -> statistics.Statistics:
    """The statistics of all images of some batches.

    Args:
      batches: of 'image', uint8 or float in [0, 255], [B, H, W, 3] (on the
        host or on devices, any B) or a list of uint8 [H, W, 3] of any sizes;
        and 'mask' [B], zero for padding (no mask: every image counts). In
        several processes: each one's part, or global arrays.
      keep_features: whether each image's features are kept, as the kernel
        distance needs them.

    Raises:
      UserError: a feature is NaN or infinite.
    """

    kept = [np.zeros((0, self.settings.tap), np.float32)]
    found = statistics.Statistics.of(kept[0], keep_features=False)
    pending = []

    def add():
      features = np.concatenate(pending)
      if keep_features:
        kept.append(features)
      pending.clear()
      return statistics.Statistics.of(features, keep_features=False)

    for features in itertools.chain.from_iterable(map(self.features, batches)):
      pending.append(features)
      if sum(map(len, pending)) >= _ROWS:
        found += add()
    if pending:
      found += add()
    if not keep_features:
      return found
    return dataclasses.replace(found, features=np.concatenate(kept))

  def features(self, batch: Batch) -> Iterator[Float[np.ndarray, 'n D']]:
    """Features of the images of a batch that aren't padding, in pieces."""
    images = batch['image']
    mask = batch.get('mask')
    mask = np.ones(len(images), np.float32) if mask is None else mask
    ready = False
    if isinstance(images, list | tuple):
      # Several processes can't know that they all have images of one size.
      alike = len({image.shape for image in images}) == 1
      ready = not alike or jax.process_count() > 1
      if ready:
        images = [resize.one(i, self.settings.resize) for i in images]
      images = np.stack(images)
    for piece, valid in zip(self._cut(images), self._cut(mask), strict=True):
      resized = piece if ready else self._prepare(piece)
      found, valid = self._apply(self._params, resized, valid)
      yield np.asarray(found)[np.asarray(valid) > 0]

  def _cut(
    self, array: Shaped[Array, 'B ...'] | Shaped[np.ndarray, 'B ...']
  ) -> Iterator[Shaped[Array, 'S ...']]:
    """Pieces of the size that is compiled, the last one padded with zeros."""
    on_devices = isinstance(array, jax.Array)
    xnp, size = jnp, self.batch_size
    if not on_devices:  # this process's part of each
      xnp, size = np, self.batch_size // jax.process_count()
    for start in range(0, len(array), size):
      piece = array if len(array) == size else array[start : start + size]
      rest = [(0, size - len(piece))] + [(0, 0)] * (piece.ndim - 1)
      piece = piece if len(piece) == size else xnp.pad(piece, rest)
      if on_devices:
        yield jax.device_put(piece, self._split)
      else:
        yield jax.make_array_from_process_local_data(self._split, piece)


def prepare(
  images: Shaped[Array, 'B H W 3'], settings: Settings
) -> Float[Array, 'B 299 299 3']:
  """Quantises and resizes a batch.

  Args:
    images: uint8, or float in [0, 255].
    settings: which of the ways.
  """
  x = images.astype(jnp.float32)
  if settings.quantise != 'none' and images.dtype != jnp.uint8:
    near = jnp.rint if settings.quantise == 'round' else jnp.floor
    x = near(x).clip(0, 255)
  return resize.batch(x, settings.resize)
