"""Random-access splits: images in memory, or records decoded when asked for.

Both give `split[i] -> {'image', 'label'}` (a Grain RandomAccessDataSource) and
`split.gather(indices)`, a whole batch at once, which the pipeline uses. Domains
of image translation have no classes: their records are {'image'} alone.
"""

from collections.abc import Callable, Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Int, Int32, Shaped, UInt8
from PIL import Image

from vit22b_jax import errors
from vit22b_jax.data import decode, records

# {'image': uint8 [B, H, W, 3], 'label': int32 [B], 'readable': bool [B]}
Batch = dict[str, Shaped[np.ndarray, 'B ...']]


class ArraySplit:
  """Decoded images in an array (or a memory-mapped file).

  Args:
    images: uint8 in [0, 255].
    labels: class of each image; None when there are no classes.
    image_size: side of the records; images stored smaller are resized
      (bicubic) when they are read. As they are stored by default.
    indices: the rows which belong to this split; all by default.

  Attributes:
    labels: class of each record of the split, or None.
    decodes: whether `gather` works on each image, and gains from threads.
    crops: False: `gather` needs no draws.
  """

  crops = False

  def __init__(
    self,
    images: UInt8[np.ndarray, 'M h w 3'],
    labels: Int32[np.ndarray, ' M'] | None = None,
    image_size: int | None = None,
    indices: Int[np.ndarray, ' N'] | None = None,
  ):
    self._images = np.asarray(images)  # A memory map indexes slower.
    self._all_labels = labels
    self._indices = np.arange(len(images)) if indices is None else indices
    self.labels = None
    if labels is not None:
      self.labels = np.asarray(labels, np.int32)[self._indices]
    self.image_size = image_size or images.shape[1]
    self.decodes = images.shape[1] != self.image_size

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Shaped[np.ndarray, '...']]:
    return _record(self, index)

  @property
  def images(self) -> UInt8[np.ndarray, 'N H W 3']:
    """Copies all images of the split, in order."""
    return self.gather(np.arange(len(self)))['image']

  def gather(
    self,
    indices: Int[np.ndarray, ' B'],
    draws: Float[np.ndarray, 'B 2'] | None = None,
  ) -> Batch:
    """Returns the records at `indices`; `draws` is for other splits."""
    del draws
    images = self._images[self._indices[indices]]
    if self.decodes:
      images = _enlarge(images, self.image_size)
    batch = {'image': images, 'readable': np.ones(len(indices), bool)}
    if self.labels is not None:
      batch['label'] = self.labels[indices]
    return batch

  def subset(self, indices: Int[np.ndarray, ' n']) -> 'ArraySplit':
    """Returns the split of these records; it shares the images."""
    rows = self._indices[indices]
    return ArraySplit(self._images, self._all_labels, self.image_size, rows)

  def validate_batch(self, indices: Int[np.ndarray, ' B'], batch: Batch):
    """Does nothing: images and labels were judged when they were decoded."""


class Unreadable:
  """Counts the corrupt images that the lazily read splits of a data set meet.

  From the start of the process, each once.

  Args:
    max_corrupt: how many are accepted.

  Attributes:
    names: of the images.
  """

  def __init__(self, max_corrupt: int):
    self._max_corrupt = max_corrupt
    self.names: list[str] = []

  def add(self, name: str) -> None:
    """Counts and logs an image, unless it was before.

    Raises:
      UserError: there are more than `max_corrupt`.
    """
    if name not in self.names:
      self.names.append(name)
      logging.warning('skipped a corrupt image: %s', name)
    validate_corrupt(self.names, self._max_corrupt)


class LazySplit:
  """Records decoded when they are read, by Grain's threads or processes.

  Args:
    images: encoded images.
    decode_file: turns a file's bytes into an image of at least `shape`.
    shape: height and width of the records.
    num_classes: labels are in [0, num_classes); None leaves labels out.
    unreadable: where `validate_batch` counts corrupt images; the splits of a
      data set share it.
    crops: whether decoded images may be larger than `shape`.
    indices: the records which belong to this split; all by default.
  """

  decodes = True

  def __init__(
    self,
    images: records.Records,
    decode_file: Callable[[bytes], UInt8[np.ndarray, 'h w 3']],
    shape: tuple[int, int],
    num_classes: int | None,
    unreadable: Unreadable,
    *,
    crops: bool = False,
    indices: Int[np.ndarray, ' N'] | None = None,
  ):
    self._records = images
    self._decode = decode_file
    self._shape = shape
    self._num_classes = num_classes
    self._indices = np.arange(len(images)) if indices is None else indices
    self.unreadable = unreadable
    self.crops = crops

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Shaped[np.ndarray, '...']]:
    return _record(self, index)

  @property
  def labels(self) -> Int32[np.ndarray, ' N']:
    """Returns the class of each record; may have to read them all."""
    return self._records.labels()[self._indices]

  def gather(
    self,
    indices: Int[np.ndarray, ' B'],
    draws: Float[np.ndarray, 'B 2'] | None = None,
  ) -> Batch:
    """Returns the records at `indices`; black and not `readable` if corrupt.

    Args:
      indices: which records.
      draws: in [0, 1), where each is cropped (down, across) when it is larger
        than `shape`; None takes the center.
    """
    batch = {
      'image': np.zeros((len(indices), *self._shape, 3), np.uint8),
      'readable': np.ones(len(indices), bool),
    }
    labels = np.zeros(len(indices), np.int32)
    for row, index in enumerate(self._indices[indices]):
      data, labels[row] = self._records.read(int(index))
      draw = None if draws is None else draws[row]
      try:
        image = self._decode(data)
        batch['image'][row] = decode.crop(image, self._shape, draw)
      except decode.CorruptImage:
        batch['readable'][row] = False
    return batch if self._num_classes is None else batch | {'label': labels}

  def subset(self, indices: Int[np.ndarray, ' n']) -> 'LazySplit':
    """Returns the split of these records."""
    return LazySplit(
      self._records,
      self._decode,
      self._shape,
      self._num_classes,
      self.unreadable,
      crops=self.crops,
      indices=self._indices[indices],
    )

  def validate_batch(self, indices: Int[np.ndarray, ' B'], batch: Batch):
    """Judges a batch of `gather`; apart, since workers decode in processes.

    Raises:
      UserError: too many records are unreadable, or a label is out of range.
    """

    def name(row: int) -> str:
      return self._records.name(int(self._indices[indices[row]]))

    if self._num_classes is not None:
      validate_labels(batch['label'], self._num_classes, name)
    for row in np.flatnonzero(~batch['readable']):
      self.unreadable.add(name(row))


Split = ArraySplit | LazySplit


def validate_corrupt(names: Sequence[str], max_corrupt: int) -> None:
  """Raises UserError when more images are corrupt than accepted."""
  if len(names) > max_corrupt:
    shown = '\n'.join(f'  {name}' for name in names[:20])
    more = f'\n  and {len(names) - 20} more' if len(names) > 20 else ''
    raise errors.UserError(
      f'{len(names)} corrupt image(s), and data.max_corrupt={max_corrupt}:\n'
      f'{shown}{more}\nMend or delete them, or pass '
      f'--config.data.max_corrupt={len(names)} to skip them.'
    )


def validate_labels(
  labels: Int[np.ndarray, ' N'], num_classes: int, name: Callable[[int], str]
) -> None:
  """Raises UserError for a label out of range; `name` calls the record."""
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if len(wrong):
    first = int(wrong[0])
    raise errors.UserError(
      f'{len(wrong)} label(s) out of range: {name(first)} has label '
      f'{int(labels[first])}, expected 0 to {num_classes - 1}.'
    )


def hold_out(
  labels: Int[np.ndarray, ' N'], fraction: float, seed: int
) -> tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' m']]:
  """Splits indices in two with the classes in proportion.

  Each class gives floor or ceil of `fraction` of its records, so that the sum
  is round(fraction * N) (largest remainders), and always keeps one.

  >>> labels = np.array([0, 0, 0, 0, 1, 1])
  >>> first, second = hold_out(labels, 0.5, seed=0)
  >>> labels[second].tolist()
  [0, 0, 1]

  Args:
    labels: class of each record.
    fraction: share of the second part, in (0, 1).
    seed: chooses the records.

  Returns:
    Sorted indices of the first (1 - fraction) and the second part (fraction),
    which is empty where every class has a single record.
  """
  classes, counts = np.unique(labels, return_counts=True)
  quota = counts * fraction
  take = np.floor(quota).astype(int)
  left = max(round(len(labels) * fraction), 1) - take.sum()
  # Stable, so that equal remainders go to the first classes on any machine.
  remainders = np.where(counts - take > 1, quota - take, -1)
  order = np.argsort(-remainders, kind='stable')[:left]
  take[order[remainders[order] >= 0]] += 1
  rng = np.random.default_rng(seed)
  second = np.concatenate(
    [
      rng.permutation(np.flatnonzero(labels == c))[:n]
      for c, n in zip(classes, take, strict=True)
    ]
  )
  first = np.setdiff1d(np.arange(len(labels)), second)
  return first, np.sort(second)


def _record(split: Split, index: int) -> dict[str, Shaped[np.ndarray, '...']]:
  if not -len(split) <= index < len(split):
    raise IndexError(f'index {index} of a split of {len(split)} records')
  batch = split.gather(np.array([index]))
  return {key: batch[key][0] for key in batch if key != 'readable'}


def _enlarge(
  images: UInt8[np.ndarray, 'B s s 3'], image_size: int
) -> UInt8[np.ndarray, 'B S S 3']:
  out = np.empty((len(images), image_size, image_size, 3), np.uint8)
  for row, image in enumerate(images):
    out[row] = decode.fit(Image.fromarray(image), image_size)
  return out
