"""Data sets by name -> train, val and test splits, for both tasks.

    data = loader.load_classes('cifar10', dir='...', image_size=32)
    data.train[0]  # {'image': uint8 [32, 32, 3], 'label': int32}
    data = loader.load_domains('cycle_gan/monet2photo', image_size=256)
    data.train.a[0]  # {'image': uint8 [256, 256, 3], 'label': 0}

What has one size and fits into `cache_max_gb` is decoded once, kept in memory
and cached on disk (`cache.py`). The rest is decoded while training, which needs
random access.
"""

import dataclasses
import functools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from vit22b_jax import errors
from vit22b_jax.data import (
  cache,
  catalog,
  decode,
  encoded,
  fingerprint,
  preprocess,
  splits,
)

_WORTH_SAYING = 50_000_000  # Bytes of pixels: some seconds.

# Rows to train on and rows held out, by split.
_Held = Mapping[str, tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' m']]]


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

  Arguments are the keys of the config's `data`. `seed` chooses the validation
  part, `val_fraction` of the training set, where the set has none.

  Raises:
    UserError: whatever is wrong with the name, the files or the labels.
  """
  found, names, native = catalog.find_classes(name, dir)
  marked = dict(found)
  if 'test' in found and not found['test'].labeled():
    logging.warning('the test part of %s has no labels: left aside', name)
    del found['test']
  count = sum(map(len, found.values()))
  # Small images that are asked for larger than memory allows are stored as they
  # are (of side `native`) and enlarged when they are read.
  sizes = (image_size, min(native or image_size, image_size))
  fits = (s for s in sizes if count * s * s * 3 <= cache_max_gb * 1e9)
  stored = next(fits, None)
  side = stored or image_size
  decode_file = functools.partial(decode.square, image_size=side)
  unreadable = splits.Unreadable(max_corrupt)
  opened = {
    split: splits.LazySplit(
      part, decode_file, (side, side), len(names), unreadable
    )
    for split, part in found.items()
  }
  if stored:
    opened = _in_memory(
      name, f'{name}-{stored}px', found, opened, unreadable, image_size
    )
    if unreadable.names and not found['train'].multi_label:
      _validate_classes(name, found, opened, names)
  else:
    _validate_random_access(f'{name!r} at {image_size} px', opened)
  train, val, test = (opened.get(split) for split in ('train', 'val', 'test'))
  held, origin = {}, 'its own'
  if val is None:
    first, held['val'] = splits.hold_out(train.labels, val_fraction, seed)
    train, val = train.subset(first), train.subset(held['val'])
    kind = 'random' if found['train'].multi_label else 'stratified'
    origin = f'a {kind} {val_fraction:g} of train, seed {seed}'
  _log(name, {'train': train, 'val': val, 'test': test}, f'val is {origin}')
  marks = fingerprint.of(marked, names, held)
  several = found['train'].multi_label
  return catalog.Dataset(train, val, test, names, marks, several)


def load_domains(
  name: str,
  *,
  dir: str = '',
  load_size: int | None = None,
  image_size: int,
  mode: str = 'resize_and_crop',
  paired: bool = False,
  seed: int = 0,
  val_fraction: float = 0.1,
  cache_max_gb: float = 4.0,
  max_corrupt: int = 0,
) -> catalog.Dataset:
  """Loads two domains as RGB uint8.

  Arguments are the keys of the config's `data`. `mode`, one of `preprocess`, is
  for training images, which come larger than `image_size` where a random crop
  is due (see `augment.crop_and_flip`). Those of val and test have their center
  cropped instead, and `resize_and_crop` resizes them to `image_size` at once.
  Where domains are `paired`, image i of one belongs to image i of the other, in
  each part. `val_fraction` gives two images of a domain at the least.

  Raises:
    UserError: whatever is wrong with the name, the files or the sizes.
  """
  resize = preprocess.Resize(mode, load_size or image_size, image_size)
  found = catalog.find_domains(name, dir, paired=paired)
  if paired and max_corrupt:
    raise errors.UserError(
      f"data.max_corrupt={max_corrupt} with data.pairing='paired': no image "
      'can be skipped, since its partner would be left; use 0.'
    )
  held = {
    split: splits.hold_out(
      np.zeros(len(part)), val_fraction, seed, catalog.LEAST
    )
    for split, part in found.items()
    if split.startswith('train')
  }
  unreadable = splits.Unreadable(max_corrupt, paired)
  fixed, varied = _parts(found, resize, held, paired, unreadable)
  if sum(part.num_bytes for part in fixed.values()) > cache_max_gb * 1e9:
    fixed, varied = {}, varied | fixed
  _validate_random_access(repr(name), varied)
  opened = varied
  if fixed:
    kind = f'{mode}-{resize.load}-{image_size}-{seed}'
    opened = varied | _domains_in_memory(name, kind, found, fixed, unreadable)
  pairs = {
    part: catalog.Pair(opened[f'{part}_a'], opened[f'{part}_b'])
    for part in ('train', 'val', 'test')
    if f'{part}_a' in opened
  }
  names = catalog.domain_names(name)
  for domain, key in zip(names, 'ab', strict=True):
    counts = {part: getattr(pair, key) for part, pair in pairs.items()}
    _log(f'{domain} of {name}', counts, f'val is of train by seed {seed}')
  marks = fingerprint.of(found, (), {s: rows for s, (_, rows) in held.items()})
  train, val, test = (pairs.get(part) for part in ('train', 'val', 'test'))
  return catalog.Dataset(train, val, test, names, marks)


def _validate_classes(
  name: str,
  found: catalog.Found,
  opened: Mapping[str, splits.Split],
  names: Sequence[str],
) -> None:
  """Raises UserError where every image of a class turned out corrupt."""
  for split, part in opened.items():
    lost = np.setdiff1d(found[split].labels(), part.labels)
    if len(lost):
      classes = ', '.join(names[label] for label in lost[:20])
      raise errors.UserError(
        f'no readable image in {name} {split} of class(es): {classes}.'
      )


def _parts(
  found: catalog.Found,
  resize: preprocess.Resize,
  held: _Held,
  paired: bool,
  unreadable: splits.Unreadable,
) -> tuple[dict[str, splits.LazySplit], dict[str, splits.LazySplit]]:
  """Sorts domains into parts of one size, and parts which must be cropped.

  Train parts stay larger than the crop, for it to be drawn on the device; but
  where they have several sizes, it is drawn while decoding.
  """
  straight = resize
  if resize.mode == 'resize_and_crop':
    straight = dataclasses.replace(resize, load=resize.crop)
  evaluated = functools.partial(decode.resized, target=straight)
  trained = functools.partial(decode.resized, target=resize)
  crop = (resize.crop, resize.crop)
  fixed, varied = {}, {}
  every = {s: preprocess.sizes(part, resize) for s, part in found.items()}
  if paired:
    _validate_partners(found, every)
  for split, part in found.items():
    domain = split[-1].lower()
    sizes = {*every[split]} - {None}
    train, rest = held.get(split, (None, None))
    fixed[f'{"test" if train is None else "val"}_{domain}'] = splits.LazySplit(
      part, evaluated, crop, 1, unreadable, rest
    )
    if train is not None:
      kind, size = (fixed, sizes.pop()) if len(sizes) == 1 else (varied, crop)
      kind[f'train_{domain}'] = splits.LazySplit(
        part, trained, size, 1, unreadable, train
      )
  return fixed, varied


def _domains_in_memory(
  name: str,
  kind: str,
  found: catalog.Found,
  fixed: dict[str, splits.LazySplit],
  unreadable: splits.Unreadable,
) -> dict[str, splits.ArraySplit]:
  """Decodes parts of domains; `kind` names what else their pixels depend on."""
  title = f'{name.removeprefix("folder:")}-{kind}'
  kept = _in_memory(name, title, found, fixed, unreadable)
  for key, split in kept.items():
    least = 1 if key.startswith('train') else catalog.LEAST
    catalog.validate_count(name, f'{key} (readable)', len(split), least)
  return kept


def _in_memory(
  name: str,
  title: str,
  found: catalog.Found,
  parts: Mapping[str, splits.LazySplit],
  unreadable: splits.Unreadable,
  image_size: int | None = None,
) -> dict[str, splits.ArraySplit]:
  """Decodes splits, without corrupt images, or finds them in the cache.

  `title` is what their pixels depend on beside the files of `found`; records
  have the side `image_size` where images are stored smaller.
  """
  indices = [part.indices.tolist() for part in parts.values()]
  files = {split: part.identity() for split, part in found.items()}
  place = next(iter(found.values())).place
  path = cache.folder(title, place, [indices, files])
  kept = cache.read(path)
  if kept is None:
    if sum(part.num_bytes for part in parts.values()) > _WORTH_SAYING:
      count = sum(map(len, parts.values()))
      logging.info(
        'decoding %d images of %s, to be kept in %s', count, name, path
      )
    *kept, complete = _decode_all(parts)
    if complete:
      cache.write(path, *kept)
    else:
      logging.warning('%s is not cached: files could not be read', name)
  arrays, corrupt = kept
  unreadable.add(corrupt)
  opened = {}
  for key, part in parts.items():
    labels, what = arrays[f'{key}_labels'], f'{name} {key}'
    splits.validate_labels(
      labels, part.num_classes, lambda i, what=what: f'{what}[{i}]'
    )
    opened[key] = splits.ArraySplit(arrays[f'{key}_images'], labels, image_size)
  return opened


def _decode_all(
  parts: Mapping[str, splits.LazySplit],
) -> tuple[cache.Arrays, list[str], bool]:
  """Decodes parts of a set.

  Returns:
    `PART_images` and `PART_labels`, what is corrupt, and whether every file
    could be read, so that the next start would find the same.
  """
  arrays, corrupt, complete = {}, [], True
  for key, part in parts.items():
    images = np.empty((len(part), *part.shape, 3), np.uint8)
    labels = []
    decoded = encoded.apply(part.records, part.decode, part.indices)
    for row, (image, label) in enumerate(decoded):
      if isinstance(image, decode.CorruptImage):
        corrupt.append(f'{part.name(row)} ({image})')
        complete &= not isinstance(image, encoded.UnreadFile)
      else:
        images[len(labels)] = decode.crop(image, part.shape)
        labels.append(label)
    arrays |= {
      f'{key}_images': images[: len(labels)],
      f'{key}_labels': np.array(labels),
    }
  return arrays, corrupt, complete


def _validate_partners(
  found: catalog.Found, sizes: Mapping[str, list[preprocess.Size | None]]
) -> None:
  """Raises UserError where readable images of a pair differ in size."""
  for a, b in (('trainA', 'trainB'), ('testA', 'testB')):
    both = zip(sizes.get(a, ()), sizes.get(b, ()), strict=True)
    for row, (one, other) in enumerate(both):
      if one and other and one != other:
        raise errors.UserError(
          f'the images of a pair have different sizes: {found[a].name(row)} '
          f'{one} and {found[b].name(row)} {other}. Choose '
          'data.preprocess=resize_and_crop.'
        )


def _validate_random_access(
  what: str, parts: Mapping[str, splits.LazySplit]
) -> None:
  for part in parts.values():
    if not part.records.random_access:
      folder = shlex.quote(part.records.place)
      # TFDS's converter imports Apache Beam even when it doesn't use it.
      raise errors.UserError(
        f'the images of {what} are larger than data.cache_max_gb or of several '
        'sizes, so that they are decoded while training; but the set is '
        'prepared as tfrecord, which has no random access. Add array_record '
        'files beside it:\n  pip install apache-beam && python -m '
        'tensorflow_datasets.scripts.convert_format '
        f'--dataset_version_dir={folder} --out_dir={folder} '
        '--out_file_format=array_record\nor raise data.cache_max_gb or, for '
        'translation, choose data.preprocess=resize_and_crop.'
      )


def _log(name: str, parts: Mapping[str, Any], origin: str) -> None:
  """Says how many images each part has."""
  if parts.get('test') is None:
    logging.warning('%s has no test part: the evaluation is on val', name)
  counts = ', '.join(
    f'{len(part)} {key}' for key, part in parts.items() if part is not None
  )
  logging.info('data %s: %s; %s', name, counts, origin)
