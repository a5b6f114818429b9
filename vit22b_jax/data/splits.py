"""Random-access splits: images in memory, or records decoded when asked for.

Both give `split[i] -> {'image', 'label'}` (a Grain RandomAccessDataSource) and
`split.gather(indices)`, a whole batch at once, which the pipeline uses. Domains
of image translation have one class, 0.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Self

import numpy as np
from absl import logging
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from vit22b_jax import errors
from vit22b_jax.data import decode as decode_lib
from vit22b_jax.data import encoded

# {'image': uint8 [B, H, W, 3], 'label': int32 [B] or float32 [B, K]}, and bool
# 'readable' [B] before, in evaluations 'mask' float32 and 'index' after the
# pipeline.
Batch = dict[str, Shaped[np.ndarray, 'B ...']]


class Split:
  """Those rows of a source of images that `indices` names.

  Attributes:
    indices: those rows.
    labels: of each record.
    decodes: whether `gather` works on each image, and gains from threads.
  """

  decodes = True

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, Shaped[np.ndarray, '...']]:
    batch = self.gather(np.array([index]))
    return {key: batch[key][0] for key in batch if key != 'readable'}

  def gather(
    self,
    indices: Int[np.ndarray, ' B'],
    draws: Float[np.ndarray, 'B 2'] | None = None,
  ) -> Batch:
    """Returns the records at `indices`.

    `draws`, in [0, 1), say where to crop (down, across) what a source holds
    larger than the records; None takes the center.
    """
    raise NotImplementedError

  def subset(self, indices: Int[np.ndarray, ' n']) -> Self:
    """Returns the split of these records; it shares the images."""
    other = copy.copy(self)
    other.indices = self.indices[indices]
    return other

  def validate_batch(self, indices: Int[np.ndarray, ' B'], batch: Batch):
    """Judges a batch of `gather`; apart, since workers decode in processes."""


class ArraySplit(Split):
  """Decoded images in an array (or a memory-mapped file).

  Those that are stored smaller than `image_size` are resized (bicubic) when
  they are read.
  """

  def __init__(
    self,
    images: UInt8[np.ndarray, 'M h w 3'],
    labels: encoded.Labels | None = None,
    image_size: int | None = None,
  ):
    self.indices = np.arange(len(images))
    self._images = np.asarray(images)  # A memory map indexes slower.
    labels = np.zeros(len(images)) if labels is None else labels
    kind = np.float32 if labels.ndim > 1 else np.int32
    self._labels = np.asarray(labels, kind)
    self.image_size = image_size or images.shape[1]
    self.decodes = images.shape[1] != self.image_size

  @property
  def labels(self) -> encoded.Labels:
    return self._labels[self.indices]

  @property
  def images(self) -> UInt8[np.ndarray, 'N H W 3']:
    """Copies all images of the split, in order."""
    return self.gather(np.arange(len(self)))['image']

  def gather(self, indices, draws=None):
    rows = self.indices[indices]
    images = self._images[rows]
    if self.decodes:
      side = self.image_size
      fitted = (decode_lib.fit(Image.fromarray(x), side) for x in images)
      images = np.stack([np.asarray(image) for image in fitted])
    readable = np.ones(len(rows), bool)
    return {'image': images, 'label': self._labels[rows], 'readable': readable}


class Unreadable:
  """The corrupt images that the splits of a data set meet, each once.

  More than `max_corrupt` are an error. None of `paired` images can be skipped.
  """

  def __init__(self, max_corrupt: int, paired: bool = False):
    self._max_corrupt, self._paired = max_corrupt, paired
    self.names: list[str] = []

  def add(self, names: Iterable[str]) -> None:
    """Logs images that weren't known; raises UserError for too many."""
    for name in names:
      if name not in self.names:
        self.names.append(name)
        logging.warning('skipped a corrupt image: %s', name)
    count = len(self.names)
    if count > self._max_corrupt:
      shown = '\n'.join(f'  {name}' for name in self.names[:20])
      more = f'\n  and {count - 20} more' if count > 20 else ''
      remedy = (
        f'Mend or delete them, or pass --config.data.max_corrupt={count} to '
        'skip them.'
      )
      if self._paired:
        remedy = 'Mend them, or delete both images of the pair.'
      raise errors.UserError(
        f'{count} corrupt image(s), and data.max_corrupt={self._max_corrupt}:\n'
        f'{shown}{more}\n{remedy}'
      )


class LazySplit(Split):
  """Records decoded when they are read, by Grain's threads or processes.

  Attributes:
    records: encoded images.
    decode: turns a file's bytes into an image of at least `shape`.
    shape: height and width of the records.
    num_classes: all labels are less, or of so many numbers.
    unreadable: where corrupt images are counted.
  """

  def __init__(
    self,
    records: encoded.Records,
    decode: Callable[[bytes], UInt8[np.ndarray, 'h w 3']],
    shape: tuple[int, int],
    num_classes: int,
    unreadable: Unreadable,
    indices: Int[np.ndarray, ' N'] | None = None,
  ):
    self.indices = np.arange(len(records)) if indices is None else indices
    self.records, self.decode, self.shape = records, decode, shape
    self.num_classes, self.unreadable = num_classes, unreadable

  @property
  def labels(self) -> encoded.Labels:
    """Returns the label of each record; may have to read them all."""
    return self.records.labels()[self.indices]

  @property
  def num_bytes(self) -> int:
    """Returns the size of the decoded images."""
    return len(self) * self.shape[0] * self.shape[1] * 3

  def name(self, index: int) -> str:
    """Names a record in messages."""
    return self.records.name(int(self.indices[index]))

  def gather(self, indices, draws=None):
    """Returns records; one that is corrupt is not `readable`, and the next.

    Raises:
      UserError: no image of the split can be read.
    """
    readable = np.ones(len(indices), bool)
    images, labels = [], []
    for row, index in enumerate(indices):
      image, label, readable[row] = self._read(int(index))
      draw = None if draws is None else draws[row]
      images.append(decode_lib.crop(image, self.shape, draw))
      labels.append(label)
    images, labels = np.stack(images), np.stack(labels)
    return {'image': images, 'label': labels, 'readable': readable}

  def _read(self, index: int):
    for ahead in range(len(self)):
      row = self.indices[(index + ahead) % len(self)]
      try:
        data, label = self.records.read(int(row))
        return self.decode(data), label, not ahead
      except decode_lib.CorruptImage as error:
        logging.warning('%s: %s', self.records.name(int(row)), error)
    raise errors.UserError(
      f'no image of a part of {self.records.place} could be read: mend the '
      'files, or choose another data.name.'
    )

  def validate_batch(self, indices, batch):
    """Raises UserError for too many corrupt images, labels out of range."""
    validate_labels(
      batch['label'], self.num_classes, lambda row: self.name(indices[row])
    )
    rows = np.flatnonzero(~batch['readable'])
    self.unreadable.add(self.name(indices[row]) for row in rows)


def validate_labels(
  labels: encoded.Labels, num_classes: int, name: Callable[[int], str]
) -> None:
  """Raises UserError for a class out of range; `name` calls the record."""
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if labels.ndim == 1 and len(wrong):
    first = int(wrong[0])
    raise errors.UserError(
      f'{len(wrong)} label(s) out of range: {name(first)} has label '
      f'{int(labels[first])}, expected 0 to {num_classes - 1}.'
    )


def hold_out(
  labels: encoded.Labels, fraction: float, seed: int, least: int = 1
) -> tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' m']]:
  """Splits indices in two with the classes in proportion.

  Each class gives floor or ceil of `fraction` of its records, so that the sum
  is round(fraction * N) (largest remainders), and always keeps one. Records of
  several classes are split at random.

  >>> labels = np.array([0, 0, 0, 0, 1, 1])
  >>> first, second = hold_out(labels, 0.5, seed=0)
  >>> labels[second].tolist()
  [0, 0, 1]

  Returns:
    Sorted indices of the first part, and of the second with `fraction` of the
    records, at the least `least`.

  Raises:
    UserError: there is nothing to hold out.
  """
  if labels.ndim > 1:
    labels = np.zeros(len(labels), int)
  if least > 1:
    fraction = max(fraction, least / len(labels))
  classes, counts = np.unique(labels, return_counts=True)
  quota = counts * fraction
  take = np.floor(quota).astype(int)
  left = max(round(len(labels) * fraction), 1) - take.sum()
  # Stable, so that equal remainders go to the first classes on any machine.
  remainders = np.where(counts - take > 1, quota - take, -1)
  order = np.argsort(-remainders, kind='stable')[:left]
  take[order[remainders[order] >= 0]] += 1
  if not take.any():
    raise errors.UserError(
      'the training part has one image in each class, so that none can be held '
      'out for val: add images, or a val folder.'
    )
  rng = np.random.default_rng(seed)
  second = np.concatenate(
    [
      rng.permutation(np.flatnonzero(labels == c))[:n]
      for c, n in zip(classes, take, strict=True)
    ]
  )
  return np.setdiff1d(np.arange(len(labels)), second), np.sort(second)
