"""Random-access splits: images in memory, or records decoded when asked for.

Both give `split[i] -> {'image', 'label'}` (a Grain RandomAccessDataSource) and
`split.gather(indices)`, a whole batch at once, which the pipeline uses.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from absl import logging
from jaxtyping import Int, Int32, Shaped, UInt8
from PIL import Image

from vit22b_jax import errors
from vit22b_jax.data import images as images_lib

# {'image': uint8 [B, S, S, 3], 'label': int32 [B], 'readable': bool [B]}
Batch = dict[str, Shaped[np.ndarray, 'B ...']]


class Records(Protocol):
  """Encoded images with random access; picklable for worker processes."""

  def __len__(self) -> int: ...

  def read(self, index: int) -> tuple[bytes, int]:
    """The image file's bytes and its label."""

  def name(self, index: int) -> str:
    """How to call the record in a message: a path, or a set and a number."""

  def labels(self) -> Int32[np.ndarray, ' N']:
    """Every label; may have to read every record."""


class ArraySplit:
  """Decoded images in an array (or a memory-mapped file).

  Args:
    images: uint8 in [0, 255].
    labels: class of each image.
    image_size: side S of the records; images stored smaller are resized
      (bicubic) when they are read.
    indices: the rows which belong to this split; all by default.

  Attributes:
    decodes: whether `gather` works on each image, and gains from threads.
  """

  def __init__(
    self,
    images: UInt8[np.ndarray, 'M s s 3'],
    labels: Int32[np.ndarray, ' M'],
    image_size: int | None = None,
    indices: Int[np.ndarray, ' N'] | None = None,
  ):
    self._images = np.asarray(images)  # A memory map indexes slower.
    self._all_labels = labels
    self._indices = np.arange(len(images)) if indices is None else indices
    self.labels = np.asarray(labels, np.int32)[self._indices]
    self.image_size = image_size or images.shape[1]
    self.decodes = images.shape[1] != self.image_size

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Shaped[np.ndarray, '...']]:
    return _record(self, index)

  @property
  def images(self) -> UInt8[np.ndarray, 'N S S 3']:
    """All images of the split, in order (a copy)."""
    return self.gather(np.arange(len(self)))['image']

  def gather(self, indices: Int[np.ndarray, ' B']) -> Batch:
    """The records at `indices`, in that order."""
    images = self._images[self._indices[indices]]
    if images.shape[1] != self.image_size:
      images = _resize(images, self.image_size)
    return {
      'image': images,
      'label': self.labels[indices],
      'readable': np.ones(len(indices), bool),
    }

  def subset(self, indices: Int[np.ndarray, ' n']) -> 'ArraySplit':
    """The split of these records; shares the images."""
    rows = self._indices[indices]
    return ArraySplit(self._images, self._all_labels, self.image_size, rows)

  def check(self, indices: Int[np.ndarray, ' B'], batch: Batch) -> None:
    """Nothing to check: images and labels were when they were decoded."""


class LazySplit:
  """Records decoded when they are read, by Grain's threads or processes.

  Args:
    records: encoded images.
    image_size: side S of the decoded images.
    num_classes: labels are in [0, num_classes).
    max_corrupt: how many unreadable images `check` accepts.
    indices: the records which belong to this split; all by default.

  Attributes:
    unreadable: names of the corrupt images that `check` has met.
  """

  decodes = True

  def __init__(
    self,
    records: Records,
    image_size: int,
    num_classes: int,
    max_corrupt: int,
    indices: Int[np.ndarray, ' N'] | None = None,
  ):
    self._records = records
    self._num_classes = num_classes
    self._max_corrupt = max_corrupt
    self._indices = np.arange(len(records)) if indices is None else indices
    self.image_size = image_size
    self.unreadable: list[str] = []

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Shaped[np.ndarray, '...']]:
    return _record(self, index)

  @property
  def labels(self) -> Int32[np.ndarray, ' N']:
    """Class of each record; may have to read them all."""
    return self._records.labels()[self._indices]

  def gather(self, indices: Int[np.ndarray, ' B']) -> Batch:
    """The records at `indices`; black and not `readable` where corrupt."""
    side = self.image_size
    batch = {
      'image': np.zeros((len(indices), side, side, 3), np.uint8),
      'label': np.zeros(len(indices), np.int32),
      'readable': np.ones(len(indices), bool),
    }
    for row, index in enumerate(self._indices[indices]):
      data, label = self._records.read(int(index))
      batch['label'][row] = label
      try:
        batch['image'][row] = images_lib.decode(data, side)
      except images_lib.CorruptImage:
        batch['readable'][row] = False
    return batch

  def subset(self, indices: Int[np.ndarray, ' n']) -> 'LazySplit':
    """The split of these records."""
    return LazySplit(
      self._records,
      self.image_size,
      self._num_classes,
      self._max_corrupt,
      self._indices[indices],
    )

  def check(self, indices: Int[np.ndarray, ' B'], batch: Batch) -> None:
    """Judges a batch of `gather`; apart, since workers decode in processes.

    Counts and logs unreadable records, each once.

    Raises:
      UserError: more than `max_corrupt` are unreadable, or a label is out of
        range.
    """

    def name(row: int) -> str:
      return self._records.name(int(self._indices[indices[row]]))

    check_labels(batch['label'], self._num_classes, name)
    for row in np.flatnonzero(~batch['readable']):
      if name(row) not in self.unreadable:
        self.unreadable.append(name(row))
        logging.warning('skipped a corrupt image: %s', name(row))
    check_corrupt(self.unreadable, self._max_corrupt)


Split = ArraySplit | LazySplit


def check_corrupt(names: Sequence[str], max_corrupt: int) -> None:
  """Raises UserError when more images are corrupt than accepted."""
  if len(names) > max_corrupt:
    shown = '\n'.join(f'  {name}' for name in names[:20])
    more = f'\n  and {len(names) - 20} more' if len(names) > 20 else ''
    raise errors.UserError(
      f'{len(names)} corrupt image(s), and data.max_corrupt={max_corrupt}:\n'
      f'{shown}{more}\nMend or delete them, or pass '
      f'--config.data.max_corrupt={len(names)} to skip them.'
    )


def check_labels(
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

  Args:
    labels: class of each record.
    fraction: share of the second part, in (0, 1).
    seed: chooses the records.

  Returns:
    Sorted indices of the first (1 - fraction) and the second part (fraction).
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
  return {'image': batch['image'][0], 'label': batch['label'][0]}


def _resize(
  images: UInt8[np.ndarray, 'B s s 3'], image_size: int
) -> UInt8[np.ndarray, 'B S S 3']:
  out = np.empty((len(images), image_size, image_size, 3), np.uint8)
  for row, image in enumerate(images):
    out[row] = images_lib.fit(Image.fromarray(image), image_size)
  return out
