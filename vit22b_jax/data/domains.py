"""Two unpaired domains by name: TFDS sets, image folders, fruit -> splits.

    data = domains.load('cycle_gan/monet2photo', dir='...', image_size=256)
    batches = domains.train_iterator(data.train, batch_size=1, seed=0)
    next(batches)  # {'a': uint8 [1, 256, 256, 3], 'b': uint8 [1, 256, 256, 3]}

What has one size is decoded once, kept in memory and cached on disk; images of
own sizes, and what memory can't hold, are decoded and cropped while training.
Training images come larger than `image_size` where a random crop is due (see
`transforms.crop_and_flip`), those of val and test come in that size.
"""

import dataclasses
import re
from collections.abc import Mapping

import grain
import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from vit22b_jax import errors
from vit22b_jax.data import (
  cache,
  decoding,
  folder,
  fruit,
  pipeline,
  resizing,
  splits,
  tfds_source,
)

PAIRINGS = ('unpaired', 'index')

_FOLDER = 'folder:'
_SPLITS = ('trainA', 'trainB', 'testA', 'testB')
# A distance between two sets needs a covariance, so two images.
LEAST = 2


@dataclasses.dataclass(frozen=True)
class Pair:
  """The same part of both domains; records are {'image': uint8 [H, W, 3]}."""

  a: splits.Split
  b: splits.Split


@dataclasses.dataclass(frozen=True)
class Domains:
  """Splits of two domains.

  Attributes:
    names: of domain a and b.
    train: what is trained on.
    val: a part of the training images that is not in `train`.
    test: for the final evaluation alone; None when there is none.
    skipped: names of the corrupt images left out while decoding into memory.
  """

  names: tuple[str, str]
  train: Pair
  val: Pair
  test: Pair | None
  skipped: tuple[str, ...] = ()


def load(
  name: str,
  *,
  dir: str = '',
  load_size: int | resizing.Size | None = None,
  image_size: int | resizing.Size,
  preprocess: str = 'resize_and_crop',
  seed: int = 0,
  val_fraction: float = 0.1,
  cache_max_gb: float = 4.0,
  max_corrupt: int = 0,
) -> Domains:
  """Loads two domains as RGB uint8.

  `preprocess`, for training images (those of val and test have their centre
  cropped instead, and `resize_and_crop` resizes them to `image_size` at once):
  - `resize_and_crop`: to `load_size`, whatever the proportions; then a crop.
  - `crop`: a crop of the image as it is.
  - `scale_width`: to the width of `load_size`, proportions kept; then a crop.
  - `none`: as they are; all must have `image_size`.

  Args:
    name: a TFDS set with splits trainA and trainB, `folder:PATH` or `fruit`.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    load_size: side, or height and width, of images before the random crop; None
      means `image_size`.
    image_size: side, or height and width, of the crop.
    preprocess: one of `resizing.MODES`.
    seed: chooses the validation part.
    val_fraction: share of the training images for it, in (0, 1); two images of
      a domain are the least.
    cache_max_gb: up to how many 1e9 bytes of pixels are kept in memory.
    max_corrupt: how many unreadable images are skipped before it is an error.

  Raises:
    UserError: whatever is wrong with the name, the files or the sizes.
  """
  if not 0 < val_fraction < 1:
    raise errors.UserError(
      f'data.val_fraction={val_fraction}: expected a share between 0 and 1.'
    )
  resize = resizing.Resize.parse(preprocess, load_size, image_size)
  records = _find(name, dir)
  fixed, varied = _parts(records, resize, seed, val_fraction)
  if sum(part.num_bytes for part in fixed.values()) > cache_max_gb * 1e9:
    fixed, varied = {}, varied | fixed
  found, skipped = _in_memory(name, records, resize, seed, fixed, max_corrupt)
  unreadable = splits.Unreadable(max_corrupt)
  for key, part in varied.items():
    found[key] = _lazy(name, part, unreadable)
  return _domains(name, found, skipped, seed)


def steps_per_epoch(pair: Pair, batch_size: int, pairing: str) -> int:
  """Batches of an epoch: of the larger domain, or of the pairs by index.

  Args:
    pair: what is trained on.
    batch_size: images of each domain in a step, over all processes.
    pairing: one of PAIRINGS.

  Raises:
    UserError: a domain is smaller than a batch, or an unknown pairing.
  """
  if pairing not in PAIRINGS:
    raise errors.UserError(
      f'data.pairing={pairing!r}: expected one of {", ".join(PAIRINGS)}.'
      f'{errors.did_you_mean(pairing, PAIRINGS)}'
    )
  smaller, larger = sorted((len(pair.a), len(pair.b)))
  if smaller < batch_size:
    raise errors.UserError(
      f'the training domains have {len(pair.a)} and {len(pair.b)} images, '
      f'fewer than batch_size={batch_size}; choose a smaller batch_size.'
    )
  return (larger if pairing == 'unpaired' else smaller) // batch_size


def train_iterator(
  pair: Pair,
  *,
  batch_size: int,
  seed: int,
  pairing: str = 'unpaired',
  workers: int = 0,
  rows: Int[np.ndarray, ' b'] | None = None,
) -> 'PairIterator':
  """Endless {'a', 'b'} batches; a function of seed and position.

  Each domain goes through its own permutations: `unpaired`, the smaller starts
  over (in a new order) while the larger is on its way; `index`, image i of one
  always comes with image i of the other, and the rest of the larger never.

  Args:
    pair: records to train on.
    batch_size: images of each domain in a step, over all processes.
    seed: of the orders.
    pairing: one of PAIRINGS.
    workers: processes for each domain that decode a lazy split; 0: threads.
    rows: those of each batch that this process makes
      (`pipeline.local_rows`); all by default.

  Raises:
    UserError: as `steps_per_epoch`.
  """
  steps_per_epoch(pair, batch_size, pairing)
  a, b = pair.a, pair.b
  seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(2)]
  if pairing == 'index':
    both = np.arange(min(len(a), len(b)))
    a, b, seeds = a.subset(both), b.subset(both), [seeds[0]] * 2
  return PairIterator(
    *(
      pipeline.train_iterator(
        split,
        batch_size=batch_size,
        seed=order,
        workers=workers,
        rows=rows,
      )
      for split, order in zip((a, b), seeds, strict=True)
    )
  )


class PairIterator(grain.DatasetIterator):
  """Batches {'a', 'b'} of two domains, which are at the same position.

  The state is that of `pipeline.BatchIterator`: {'next_index': position}.
  """

  def __init__(self, a: pipeline.BatchIterator, b: pipeline.BatchIterator):
    super().__init__((a, b))

  def __next__(self) -> dict[str, UInt8[np.ndarray, 'B H W 3']]:
    self._assert_not_closed()
    a, b = self._parents
    return {'a': next(a)['image'], 'b': next(b)['image']}

  def get_state(self) -> dict[str, int]:
    """The position: how many batches have been yielded."""
    return self._parents[0].get_state()

  def set_state(self, state: dict[str, int]) -> None:
    """Continues from a position of `get_state`."""
    for domain in self._parents:
      domain.set_state(state)


def _find(name: str, dir: str) -> dict[str, decoding.AnyRecords]:
  """Records of trainA, trainB and, when there are any, testA and testB."""
  if name == 'fruit':
    return fruit.find()
  if name.startswith(_FOLDER):
    records = folder.find_domains(name.removeprefix(_FOLDER))
  else:
    records = tfds_source.find_unlabelled(name, dir)
  for a, b in (('trainA', 'trainB'), ('testA', 'testB')):
    missing = [split for split in (a, b) if split not in records]
    if len(missing) == 1 or 'trainA' in missing:
      raise errors.UserError(
        f'{name!r} has no {" and no ".join(missing)}, only '
        f'{", ".join(records) or "nothing of it"}; expected trainA and trainB, '
        'optional testA and testB.'
      )
  return {split: records[split] for split in _SPLITS if split in records}


def _parts(
  records: Mapping[str, decoding.AnyRecords],
  resize: resizing.Resize,
  seed: int,
  val_fraction: float,
) -> tuple[dict[str, decoding.Part], dict[str, decoding.Part]]:
  """Parts of each domain: those of one size, and those which must be cropped.

  Train parts stay larger than the crop, for it to be drawn on the device; but
  where they have several sizes, it is drawn while decoding.
  """
  straight = resize
  if resize.mode == 'resize_and_crop':
    straight = dataclasses.replace(resize, load=resize.crop)
  centred = resizing.Decode(straight, centre=True)
  fixed, varied = {}, {}
  for split, part in records.items():
    domain = split[-1].lower()
    sizes = resizing.sizes(part, resize)
    if split.startswith('test'):
      _check_count(part.place, split, len(part), LEAST)
      fixed[f'test_{domain}'] = decoding.Part(part, centred, resize.crop)
      continue
    _check_count(part.place, split, len(part), LEAST + 1)
    share = max(val_fraction, LEAST / len(part))
    train, val = splits.hold_out(np.zeros(len(part)), share, seed)
    fixed[f'val_{domain}'] = decoding.Part(part, centred, resize.crop, val)
    decode, key = resizing.Decode(resize, centre=False), f'train_{domain}'
    if len(sizes) == 1:
      fixed[key] = decoding.Part(part, decode, sizes.pop(), train)
    else:
      varied[key] = decoding.Part(part, decode, resize.crop, train)
  return fixed, varied


def _in_memory(
  name: str,
  records: Mapping[str, decoding.AnyRecords],
  resize: resizing.Resize,
  seed: int,
  parts: Mapping[str, decoding.Part],
  max_corrupt: int,
) -> tuple[dict[str, splits.Split], tuple[str, ...]]:
  """Splits of decoded arrays, and the names of what could not be decoded."""
  if not parts:
    return {}, ()
  sizes = f'{resizing.show(resize.load)}-{resizing.show(resize.crop)}'
  rows = [
    part.rows.tolist() for part in parts.values() if part.rows is not None
  ]
  path = cache.folder(
    f'{name.removeprefix(_FOLDER)}-{resize.mode}-{sizes}-{seed}',
    records['trainA'].place,
    [rows, {s: part.identity() for s, part in records.items()}],
  )
  arrays, meta = decoding.in_memory(name, path, parts, max_corrupt)
  found = {}
  for key in parts:
    images = arrays[f'{key}_images']
    _check_count(name, f'{key} (readable)', len(images), _least(key))
    found[key] = splits.ArraySplit(images)
  return found, tuple(meta['skipped'])


def _lazy(
  name: str, part: decoding.Part, unreadable: splits.Unreadable
) -> splits.LazySplit:
  if not part.records.random_access:
    raise errors.UserError(
      f'the images of {name!r} are larger than data.cache_max_gb or of several '
      'sizes, so that they are decoded while training; but the set is prepared '
      'as tfrecord, which has no random access. Add array_record files beside '
      f'it:\n  {tfds_source.conversion_command(part.records)}\nor raise '
      'data.cache_max_gb or choose data.preprocess=resize_and_crop.'
    )
  return splits.LazySplit(
    part.records, part.shape, None, unreadable, part.rows, part.decode
  )


def _domains(
  name: str,
  found: Mapping[str, splits.Split],
  skipped: tuple[str, ...],
  seed: int,
) -> Domains:
  """Pairs the domains' parts, and says what is what."""
  pairs = {
    part: Pair(found[f'{part}_a'], found[f'{part}_b'])
    for part in ('train', 'val', 'test')
    if f'{part}_a' in found
  }
  names = names_of(name)
  if 'test' not in pairs:
    logging.warning('%s has no test part: the evaluation is on val', name)
  for index, domain in enumerate(names):
    counts = [f'{len((p.a, p.b)[index])} {k}' for k, p in pairs.items()]
    logging.info(
      'domain %s of %s: %s (val of train by seed %d)',
      domain,
      name,
      ', '.join(counts),
      seed,
    )
  test = pairs.pop('test', None)
  return Domains(names, test=test, skipped=skipped, **pairs)


def names_of(name: str) -> tuple[str, str]:
  """('monet', 'photo') for any name that ends in monet2photo."""
  if name == 'fruit':
    return fruit.NAMES
  last = name.removeprefix(_FOLDER).rstrip('/').split('/')[-1].split(':')[0]
  both = re.fullmatch(r'([A-Za-z]\w*)2([A-Za-z]\w*)', last)
  return both.groups() if both else ('a', 'b')


def _least(key: str) -> int:
  return 1 if key.startswith('train') else LEAST


def _check_count(where: str, part: str, count: int, least: int) -> None:
  if count < least:
    raise errors.UserError(
      f'{where} has {count} image(s) in {part}; {least} are the least (an '
      'evaluation compares two or more, and val is a part of train).'
    )
