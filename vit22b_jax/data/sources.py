"""Data by name: TFDS sets, image folders, digits -> train, val and test splits.

    data = sources.load('cifar10', dir='...', image_size=32)
    data.train[0]  # {'image': uint8 [32, 32, 3], 'label': int32}

What fits into `cache_max_gb` is decoded once, kept in memory and cached on disk
(`cache.py`); what doesn't is decoded while training and needs random access.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from vit22b_jax import errors
from vit22b_jax.data import cache, decoding, digits, folder, splits, tfds_source
from vit22b_jax.data import images as images_lib

_FOLDER = 'folder:'
Split = splits.Split


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Splits of a data set.

  Attributes:
    train: what is trained on.
    val: its own validation part, or a stratified part of the training set.
    test: for the final evaluation alone; None when there is no labelled one.
    class_names: one for each label.
    skipped: names of the corrupt images left out while decoding into memory.
  """

  train: Split
  val: Split
  test: Split | None
  class_names: tuple[str, ...]
  skipped: tuple[str, ...] = ()


def load(
  name: str,
  *,
  dir: str = '',
  image_size: int,
  seed: int = 0,
  val_fraction: float = 0.1,
  cache_max_gb: float = 4.0,
  max_corrupt: int = 0,
) -> Dataset:
  """Loads a data set as RGB uint8 squares.

  Args:
    name: a TFDS set, `folder:PATH` or `digits`.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    image_size: side of the images in pixels.
    seed: chooses the validation part when the set has none.
    val_fraction: share of the training set for it, in (0, 1).
    cache_max_gb: up to how many 1e9 bytes of pixels are kept in memory.
    max_corrupt: how many unreadable images are skipped before it is an error.

  Raises:
    UserError: whatever is wrong with the name, the files or the labels.
  """
  if not 0 < val_fraction < 1:
    raise errors.UserError(
      f'data.val_fraction={val_fraction}: expected a share between 0 and 1.'
    )
  skipped: tuple[str, ...] = ()
  if name == 'digits':
    parts, class_names = digits.load(image_size), digits.CLASS_NAMES
  else:
    if name.startswith(_FOLDER):
      records, class_names = folder.find(name.removeprefix(_FOLDER))
      native = None
    else:
      records, class_names, shape = tfds_source.find(name, dir)
      native = None if None in shape[:2] else min(shape[:2])
    stored = _stored_size(records, image_size, native, cache_max_gb)
    if stored:
      parts, skipped = _in_memory(
        name, records, class_names, stored, image_size, max_corrupt
      )
    else:
      parts = _lazy(name, records, class_names, image_size, max_corrupt)
  return _dataset(name, parts, class_names, skipped, seed, val_fraction)


def _dataset(
  name: str,
  parts: dict[str, Split],
  class_names: tuple[str, ...],
  skipped: tuple[str, ...],
  seed: int,
  val_fraction: float,
) -> Dataset:
  """Holds out a validation part where there is none, and says what is what."""
  train, val, test = (parts.get(split) for split in ('train', 'val', 'test'))
  if test is None:
    logging.warning('%s has no test part: the evaluation is on val', name)
  origin = 'its own'
  if val is None:
    first, second = splits.hold_out(train.labels, val_fraction, seed)
    train, val = train.subset(first), train.subset(second)
    origin = f'a stratified {val_fraction:g} of train, seed {seed}'
  logging.info(
    'data %s: %d train, %d val (%s), %s, %d classes',
    name,
    len(train),
    len(val),
    origin,
    f'{len(test) if test else 0} test',
    len(class_names),
  )
  return Dataset(train, val, test, class_names, skipped)


def _stored_size(
  records: Mapping[str, decoding.AnyRecords],
  image_size: int,
  native: int | None,
  cache_max_gb: float,
) -> int | None:
  """Side of the images in memory; None when they don't fit at all.

  Small images (side `native`) that are asked for larger than memory allows are
  stored as they are and enlarged when they are read.
  """
  count = sum(len(part) for part in records.values())
  for side in (image_size, min(native or image_size, image_size)):
    if count * side * side * 3 <= cache_max_gb * 1e9:
      return side
  return None


def _in_memory(
  name: str,
  records: Mapping[str, decoding.AnyRecords],
  class_names: tuple[str, ...],
  stored: int,
  image_size: int,
  max_corrupt: int,
) -> tuple[dict[str, Split], tuple[str, ...]]:
  """Splits of decoded arrays, from the cache when it has them."""
  files = {split: part.identity() for split, part in records.items()}
  path = cache.folder(
    f'{name}-{stored}px', records['train'].place, [class_names, files]
  )

  def decode(data: bytes) -> UInt8[np.ndarray, 'S S 3']:
    return images_lib.decode(data, stored)

  encoded = {
    split: decoding.Part(part, decode, (stored, stored))
    for split, part in records.items()
  }
  arrays, meta = decoding.in_memory(name, path, encoded, max_corrupt)
  parts = {}
  for split in records:
    images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
    if split == 'test' and len(labels) and np.all(labels == -1):
      logging.info('the test part of %s has no labels: left aside', name)
      continue
    _check_part(f'{name} {split}', labels, meta['lost'][split], class_names)
    parts[split] = splits.ArraySplit(images, labels, image_size)
  return parts, tuple(meta['skipped'])


def _check_part(
  what: str,
  labels: Int[np.ndarray, ' N'],
  lost: Sequence[int],
  class_names: Sequence[str],
) -> None:
  """Raises UserError for labels out of range, classes without an image."""
  splits.check_labels(labels, len(class_names), lambda i: f'{what}[{i}]')
  if lost:
    names = ', '.join(class_names[label] for label in lost[:20])
    raise errors.UserError(
      f'no readable image in {what} of class(es): {names}.'
    )


def _lazy(
  name: str,
  records: Mapping[str, decoding.AnyRecords],
  class_names: tuple[str, ...],
  image_size: int,
  max_corrupt: int,
) -> dict[str, Split]:
  """Splits decoded while they are read."""
  parts, unreadable = {}, splits.Unreadable(max_corrupt)
  for split, part in records.items():
    if not part.random_access:
      raise errors.UserError(
        f'{name!r} at {image_size} px is larger than data.cache_max_gb and is '
        'prepared as tfrecord, which has no random access. Add array_record '
        f'files beside it:\n  {tfds_source.conversion_command(part)}\nor raise '
        'data.cache_max_gb.'
      )
    if split == 'test' and part.read(0)[1] == -1:
      logging.info('the test part of %s has no labels: left aside', name)
      continue
    if isinstance(part, folder.FolderRecords):  # their labels cost nothing
      _check_part(f'{name} {split}', part.labels(), _lost(part), class_names)
    parts[split] = splits.LazySplit(
      part, image_size, len(class_names), unreadable
    )
  return parts


def _lost(records: folder.FolderRecords) -> list[int]:
  """Labels of which no image can be read; most classes show their first."""

  def readable(rows: Int[np.ndarray, ' n']) -> set[int]:
    """Labels of the rows that can be read."""
    found = decoding.apply(
      records, functools.partial(images_lib.decode, image_size=8), rows
    )
    return {
      label for x, label in found if not isinstance(x, images_lib.CorruptImage)
    }

  labels = records.labels()
  classes, first = np.unique(labels, return_index=True)
  seen = readable(np.sort(first))
  rest = np.flatnonzero(~np.isin(labels, list(seen)))
  seen |= readable(rest) if len(rest) else set()
  return sorted(set(classes.tolist()) - seen)
