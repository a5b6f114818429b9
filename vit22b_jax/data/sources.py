"""Data by name: TFDS sets, image folders, digits -> train, val and test splits.

    data = sources.load('cifar10', dir='...', image_size=32)
    data.train[0]  # {'image': uint8 [32, 32, 3], 'label': int32}

What fits into `cache_max_gb` is decoded once, kept in memory and cached on disk
(`cache.py`); what doesn't is decoded while training and needs random access.
"""

import collections
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, Shaped, UInt8

from vit22b_jax import errors
from vit22b_jax.data import cache, digits, folder, splits, tfds_source
from vit22b_jax.data import images as images_lib

_FOLDER = 'folder:'
Split = splits.Split
_CHUNK = 64
AnyRecords = folder.FolderRecords | tfds_source.TfdsRecords


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
  records: Mapping[str, AnyRecords],
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
  records: Mapping[str, AnyRecords],
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
  found = cache.read(path)
  if found is None:
    count = sum(len(part) for part in records.values())
    logging.warning(
      'decoding %d images of %s, to be kept in %s', count, name, path
    )
    found = _decode_all(name, records, stored)
    cache.write(path, *found)
  arrays, meta = found
  skipped = tuple(meta['skipped'])
  for corrupt in skipped:
    logging.warning('skipped a corrupt image: %s', corrupt)
  splits.check_corrupt(skipped, max_corrupt)
  parts = {}
  for split in records:
    images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
    if split == 'test' and len(labels) and np.all(labels == -1):
      logging.info('the test part of %s has no labels: left aside', name)
      continue
    _check_part(f'{name} {split}', labels, meta['lost'][split], class_names)
    parts[split] = splits.ArraySplit(images, labels, image_size)
  return parts, skipped


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


def _decode_all(
  name: str, records: Mapping[str, AnyRecords], side: int
) -> tuple[dict[str, Shaped[np.ndarray, '...']], dict[str, Any]]:
  """Decodes every record.

  Returns:
    Arrays by name; `skipped`, the names of corrupt images, and `lost`, for each
    split the labels of which none could be read.
  """
  start = time.monotonic()
  arrays, skipped, lost = {}, [], {}
  for split, part in records.items():
    images = np.empty((len(part), side, side, 3), np.uint8)
    labels = np.empty(len(part), np.int32)
    readable = np.ones(len(part), bool)
    for row, (image, labels[row]) in enumerate(_decoded(part, side)):
      if isinstance(image, images_lib.CorruptImage):
        readable[row] = False
        skipped.append(f'{part.name(row)} ({image})')
      else:
        images[row] = image
    lost[split] = np.setdiff1d(labels, labels[readable]).tolist()
    if not readable.all():
      images, labels = images[readable], labels[readable]
    arrays |= {f'{split}_images': images, f'{split}_labels': labels}
  logging.info('decoded %s in %.1f s', name, time.monotonic() - start)
  return arrays, {'skipped': skipped, 'lost': lost}


def _decoded(
  records: AnyRecords, side: int
) -> Iterator[tuple[UInt8[np.ndarray, 'S S 3'] | images_lib.CorruptImage, int]]:
  """Images, or what is wrong with them, and labels, in order.

  Threads read and decode, since Pillow releases the interpreter's lock; they
  take a chunk at a time, for small images are as quick to decode as to pass on.
  """

  def decode(chunk: list[Callable[[], tuple[bytes, int]]]):
    out = []
    for read in chunk:
      data, label = read()
      try:
        out.append((images_lib.decode(data, side), label))
      except images_lib.CorruptImage as error:
        out.append((error, label))
    return out

  threads = min(os.cpu_count() or 1, 32)
  readers, pending = records.readers(), collections.deque()
  with futures.ThreadPoolExecutor(threads) as pool:
    while chunk := list(itertools.islice(readers, _CHUNK)):
      pending.append(pool.submit(decode, chunk))
      if len(pending) > 2 * threads:
        yield from pending.popleft().result()
    while pending:
      yield from pending.popleft().result()


def _lazy(
  name: str,
  records: Mapping[str, AnyRecords],
  class_names: tuple[str, ...],
  image_size: int,
  max_corrupt: int,
) -> dict[str, Split]:
  """Splits decoded while they are read."""
  parts = {}
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
    parts[split] = splits.LazySplit(
      part, image_size, len(class_names), max_corrupt
    )
  return parts
