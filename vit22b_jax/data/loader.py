"""Data sets by name -> train, val and test splits, for both tasks.

    data = loader.load_classes('cifar10', dir='...', image_size=32)
    data.train[0]  # {'image': uint8 [32, 32, 3], 'label': int32}
    data = loader.load_domains('cycle_gan/monet2photo', image_size=256)
    data.train.a[0]  # {'image': uint8 [256, 256, 3]}

What has one size and fits into `cache_max_gb` is decoded once, kept in memory
and cached on disk (`cache.py`). The rest is decoded while training, which needs
random access.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from vit22b_jax import errors
from vit22b_jax.data import (
  cache,
  catalog,
  decode,
  fingerprint,
  materialize,
  preprocess,
  records,
  splits,
)
from vit22b_jax.data.readers import folders, tfds


def load_classes(
  name: str,
  *,
  dir: str = '',
  image_size: int,
  seed: int = 0,
  val_fraction: float = 0.1,
  cache_max_gb: float = 4.0,
  max_corrupt: int = 0,
) -> catalog.Dataset:
  """Loads a labeled data set as RGB uint8 squares.

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
  found, names, native = catalog.find_classes(name, dir)
  stored = _stored_size(found, image_size, native, cache_max_gb)
  skipped: tuple[str, ...] = ()
  if stored:
    parts, skipped = _classes_in_memory(
      name, found, names, stored, image_size, max_corrupt
    )
  else:
    parts = _lazy_classes(name, found, names, image_size, max_corrupt)
  train, val, test = (parts.get(split) for split in ('train', 'val', 'test'))
  held, origin = {}, 'its own'
  if val is None:
    first, held['val'] = catalog.hold_out(
      name, train.labels, val_fraction, seed
    )
    train, val = train.subset(first), train.subset(held['val'])
    origin = f'a stratified {val_fraction:g} of train, seed {seed}'
  _log(name, {'train': train, 'val': val, 'test': test}, f'val is {origin}')
  return catalog.Dataset(
    train, val, test, names, skipped, fingerprint.of(found, names, held)
  )


def load_domains(
  name: str,
  *,
  dir: str = '',
  load_size: int | preprocess.Size | None = None,
  image_size: int | preprocess.Size,
  mode: str = 'resize_and_crop',
  seed: int = 0,
  val_fraction: float = 0.1,
  cache_max_gb: float = 4.0,
  max_corrupt: int = 0,
) -> catalog.Dataset:
  """Loads two unpaired domains as RGB uint8.

  `mode`, one of `preprocess.MODES`, is for training images, which come larger
  than `image_size` where a random crop is due (see `augment.crop_and_flip`).
  Those of val and test have their center cropped instead, and
  `resize_and_crop` resizes them to `image_size` at once.

  Args:
    name: a TFDS set with splits trainA and trainB, `folder:PATH` or `fruit`.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    load_size: side, or height and width, of images before the random crop; None
      means `image_size`.
    image_size: side, or height and width, of the crop.
    mode: how images of any size become one size.
    seed: chooses the validation part.
    val_fraction: share of the training images for it, in (0, 1); two images of
      a domain are the least.
    cache_max_gb: up to how many 1e9 bytes of pixels are kept in memory.
    max_corrupt: how many unreadable images are skipped before it is an error.

  Raises:
    UserError: whatever is wrong with the name, the files or the sizes.
  """
  resize = preprocess.Resize.parse(mode, load_size, image_size)
  found = catalog.find_domains(name, dir)
  held = {
    split: catalog.hold_out(
      name, np.zeros(len(part)), val_fraction, seed, catalog.LEAST
    )
    for split, part in found.items()
    if split.startswith('train')
  }
  parts, skipped = _open_domains(
    name, found, resize, seed, held, cache_max_gb, max_corrupt
  )
  pairs = {
    part: catalog.Pair(parts[f'{part}_a'], parts[f'{part}_b'])
    for part in ('train', 'val', 'test')
    if f'{part}_a' in parts
  }
  names = catalog.domain_names(name)
  for domain, key in zip(names, 'ab', strict=True):
    counts = {part: getattr(pair, key) for part, pair in pairs.items()}
    _log(f'{domain} of {name}', counts, f'val is of train by seed {seed}')
  marks = fingerprint.of(found, (), {s: rows for s, (_, rows) in held.items()})
  train, val, test = (pairs.get(part) for part in ('train', 'val', 'test'))
  return catalog.Dataset(train, val, test, names, skipped, marks)


def _stored_size(
  found: catalog.Found, image_size: int, native: int | None, cache_max_gb: float
) -> int | None:
  """Returns the side of images in memory; None when they don't fit at all.

  Small images (side `native`) that are asked for larger than memory allows are
  stored as they are and enlarged when they are read.
  """
  count = sum(map(len, found.values()))
  for side in (image_size, min(native or image_size, image_size)):
    if count * side * side * 3 <= cache_max_gb * 1e9:
      return side
  return None


def _classes_in_memory(
  name: str,
  found: catalog.Found,
  names: tuple[str, ...],
  stored: int,
  image_size: int,
  max_corrupt: int,
) -> tuple[dict[str, splits.Split], tuple[str, ...]]:
  """Returns splits of decoded arrays, and what could not be decoded."""
  files = {split: part.identity() for split, part in found.items()}
  path = cache.folder(
    f'{name}-{stored}px', found['train'].place, [names, files]
  )
  decode_file = functools.partial(decode.square, image_size=stored)
  encoded = {
    split: materialize.Part(part, decode_file, (stored, stored))
    for split, part in found.items()
  }
  arrays, meta = materialize.materialize(name, path, encoded, max_corrupt)
  parts = {}
  for split in found:
    images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
    if _is_unlabeled(name, split, labels):
      continue
    _validate_part(f'{name} {split}', labels, meta['lost'][split], names)
    parts[split] = splits.ArraySplit(images, labels, image_size)
  return parts, tuple(meta['skipped'])


def _lazy_classes(
  name: str,
  found: catalog.Found,
  names: tuple[str, ...],
  image_size: int,
  max_corrupt: int,
) -> dict[str, splits.Split]:
  """Returns splits decoded while they are read."""
  parts, unreadable = {}, splits.Unreadable(max_corrupt)
  decode_file = functools.partial(decode.square, image_size=image_size)
  for split, part in found.items():
    _validate_random_access(f'{name!r} at {image_size} px', part)
    if _is_unlabeled(name, split, [part.read(0)[1]]):
      continue
    if isinstance(part, folders.FolderRecords):  # Their labels cost nothing.
      _validate_part(f'{name} {split}', part.labels(), _lost(part), names)
    parts[split] = splits.LazySplit(
      part, decode_file, (image_size, image_size), len(names), unreadable
    )
  return parts


def _is_unlabeled(name: str, split: str, labels: Sequence[int]) -> bool:
  """Returns whether a test part has no labels, and says so."""
  unlabeled = split == 'test' and len(labels) and set(labels) == {-1}
  if unlabeled:
    logging.warning('the test part of %s has no labels: left aside', name)
  return bool(unlabeled)


def _validate_part(
  what: str,
  labels: Int[np.ndarray, ' N'],
  lost: Iterable[int],
  names: Sequence[str],
) -> None:
  """Raises UserError for labels out of range, classes without an image."""
  splits.validate_labels(labels, len(names), lambda i: f'{what}[{i}]')
  classes = ', '.join([names[label] for label in lost][:20])
  if classes:
    raise errors.UserError(
      f'no readable image in {what} of class(es): {classes}.'
    )


def _lost(part: folders.FolderRecords) -> list[int]:
  """Lists labels of which no image can be read; most show their first."""

  def readable(rows: Int[np.ndarray, ' n']) -> set[int]:
    """Returns the labels of the rows that can be read."""
    found = records.apply(
      part, functools.partial(decode.square, image_size=8), rows
    )
    return {
      label for x, label in found if not isinstance(x, decode.CorruptImage)
    }

  labels = part.labels()
  classes, first = np.unique(labels, return_index=True)
  seen = readable(np.sort(first))
  rest = np.flatnonzero(~np.isin(labels, list(seen)))
  seen |= readable(rest) if len(rest) else set()
  return sorted(set(classes.tolist()) - seen)


def _open_domains(
  name: str,
  found: catalog.Found,
  resize: preprocess.Resize,
  seed: int,
  held: Mapping[str, tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' m']]],
  cache_max_gb: float,
  max_corrupt: int,
) -> tuple[dict[str, splits.Split], tuple[str, ...]]:
  """Returns splits in memory or read lazily, and what could not be decoded."""
  fixed, varied = _parts(found, resize, held)
  if sum(part.num_bytes for part in fixed.values()) > cache_max_gb * 1e9:
    fixed, varied = {}, varied | fixed
  parts, skipped = _domains_in_memory(
    name, found, resize, seed, fixed, max_corrupt
  )
  unreadable = splits.Unreadable(max_corrupt)
  for key, part in varied.items():
    _validate_random_access(f'{name!r}', part.records)
    parts[key] = splits.LazySplit(
      part.records,
      part.decode,
      part.shape,
      None,
      unreadable,
      crops=True,
      indices=part.rows,
    )
  return parts, skipped


def _parts(
  found: catalog.Found,
  resize: preprocess.Resize,
  held: Mapping[str, tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' m']]],
) -> tuple[dict[str, materialize.Part], dict[str, materialize.Part]]:
  """Sorts domains into parts of one size, and parts which must be cropped.

  Train parts stay larger than the crop, for it to be drawn on the device; but
  where they have several sizes, it is drawn while decoding.
  """
  straight = resize
  if resize.mode == 'resize_and_crop':
    straight = dataclasses.replace(resize, load=resize.crop)
  centered = preprocess.Decode(straight, center=True)
  whole = preprocess.Decode(resize, center=False)
  fixed, varied = {}, {}
  for split, part in found.items():
    domain = split[-1].lower()
    sizes = preprocess.sizes(part, resize)
    rows = held.get(split, (None, None))
    key = f'val_{domain}' if split in held else f'test_{domain}'
    fixed[key] = materialize.Part(part, centered, resize.crop, rows[1])
    if split in held:
      kind, size = (fixed, sizes.pop()) if len(sizes) == 1 else (varied, None)
      kind[f'train_{domain}'] = materialize.Part(
        part, whole, size or resize.crop, rows[0]
      )
  return fixed, varied


def _domains_in_memory(
  name: str,
  found: catalog.Found,
  resize: preprocess.Resize,
  seed: int,
  parts: Mapping[str, materialize.Part],
  max_corrupt: int,
) -> tuple[dict[str, splits.Split], tuple[str, ...]]:
  """Returns splits of decoded arrays, and what could not be decoded."""
  if not parts:
    return {}, ()
  sizes = f'{preprocess.show(resize.load)}-{preprocess.show(resize.crop)}'
  rows = [
    part.rows.tolist() for part in parts.values() if part.rows is not None
  ]
  path = cache.folder(
    f'{name.removeprefix("folder:")}-{resize.mode}-{sizes}-{seed}',
    found['trainA'].place,
    [rows, {split: part.identity() for split, part in found.items()}],
  )
  arrays, meta = materialize.materialize(name, path, parts, max_corrupt)
  opened = {}
  for key in parts:
    images = arrays[f'{key}_images']
    least = 1 if key.startswith('train') else catalog.LEAST
    catalog.validate_count(name, f'{key} (readable)', len(images), least)
    opened[key] = splits.ArraySplit(images)
  return opened, tuple(meta['skipped'])


def _validate_random_access(what: str, part: records.Records) -> None:
  if not part.random_access:
    raise errors.UserError(
      f'the images of {what} are larger than data.cache_max_gb or of several '
      'sizes, so that they are decoded while training; but the set is prepared '
      'as tfrecord, which has no random access. Add array_record files beside '
      f'it:\n  {tfds.conversion_command(part.place)}\nor raise '
      'data.cache_max_gb or, for translation, choose '
      'data.preprocess=resize_and_crop.'
    )


def _log(name: str, parts: Mapping[str, Any], origin: str) -> None:
  """Says how many images each part has."""
  if parts.get('test') is None:
    logging.warning('%s has no test part: the evaluation is on val', name)
  counts = ', '.join(
    f'{len(part)} {key}' for key, part in parts.items() if part is not None
  )
  logging.info('data %s: %s; %s', name, counts, origin)
