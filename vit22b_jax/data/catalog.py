"""Data sets by name: their records, parts and names, for both tasks.

    found, names, side = find_classes('folder:images', dir='')
    found = find_domains('cycle_gan/monet2photo', dir='...')

`loader` turns what is found into splits. A plan of a run needs sizes and names
alone: its parts are ranges, and a few well-known TFDS sets need not be there at
all.

    >>> data = count_domains('fruit')
    >>> len(data.train.a), len(data.val.a), len(data.test.a)
    (360, 40, 64)
"""

import dataclasses
import os
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import encoded, splits
from vit22b_jax.data.readers import digits, folders, fruit, tfds

# A distance between two sets needs a covariance, so two images.
LEAST = 2
_FOLDER = 'folder:'
# Images by split and number of classes, as https://www.tensorflow.org/datasets/
# catalog/NAME lists them. ImageNet's test part has no labels: left aside.
_KNOWN = {
  'cifar10': ({'train': 50_000, 'test': 10_000}, 10),
  'cifar100': ({'train': 50_000, 'test': 10_000}, 100),
  'imagenet2012': ({'train': 1_281_167, 'val': 50_000}, 1000),
} | {
  f'cycle_gan/{name}': (dict(zip(folders.DOMAINS, counts, strict=True)), 2)
  for name, counts in (
    ('apple2orange', (995, 1019, 266, 248)),
    ('horse2zebra', (1067, 1334, 120, 140)),
    ('monet2photo', (1072, 6287, 121, 751)),
  )
}


@dataclasses.dataclass(frozen=True)
class Pair:
  """The same part of both domains; records are {'image': uint8 [H, W, 3]}."""

  a: splits.Split
  b: splits.Split


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The parts of a data set, Pairs for image translation."""

  train: splits.Split | Pair
  val: splits.Split | Pair  # its own, or one held out of the training set
  test: splits.Split | Pair | None  # None when there is no labeled one
  names: tuple[str, ...]  # one for each label, or those of domain a and b
  fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)
  multi_label: bool = False  # labels are vectors of 0 and 1, float32 [N, K]


Found = dict[str, encoded.Records]


def find_classes(
  name: str, dir: str
) -> tuple[Found, tuple[str, ...], int | None]:
  """Finds the records of train, val and test, the classes, and a common side.

  Raises:
    UserError: there's no such set, or it isn't one for classification.
  """
  if name == 'digits':
    return digits.find(), digits.CLASS_NAMES, 8
  if name.startswith(_FOLDER):
    return *folders.find(name.removeprefix(_FOLDER)), None
  found, names, shape = tfds.find(name, dir)
  return found, names, None if None in shape[:2] else min(shape[:2])


def find_domains(name: str, dir: str, *, paired: bool = False) -> Found:
  """Finds the records of trainA, trainB and any testA and testB.

  Raises:
    UserError: there's no such set, or a domain is missing or too small.
  """
  if paired and not name.startswith(_FOLDER):
    raise errors.UserError(
      "data.pairing='paired' goes by the names of files: data.name="
      f"{name!r} must be 'folder:PATH', or pairing 'unpaired' or 'index'."
    )
  if name == 'fruit':
    return fruit.find()
  if name.startswith(_FOLDER):
    found = folders.find_domains(name.removeprefix(_FOLDER), paired)
  else:
    found = tfds.find_unlabeled(name, dir)
  _validate_domains(name, {split: len(part) for split, part in found.items()})
  return {split: found[split] for split in folders.DOMAINS if split in found}


def domain_names(name: str) -> tuple[str, str]:
  """Names both domains: ('monet', 'photo') of a name ending in monet2photo.

  Others, and equal names as of face2face, which nobody could tell apart, are
  ('a', 'b').
  """
  if name == 'fruit':
    return fruit.NAMES
  last = name.removeprefix(_FOLDER).rstrip('/').split('/')[-1].split(':')[0]
  both = re.fullmatch(r'([A-Za-z]\w*)2([A-Za-z]\w*)', last)
  return both.groups() if both and both[1] != both[2] else ('a', 'b')


def count_classes(
  name: str, *, dir: str = '', val_fraction: float = 0.1
) -> Dataset:
  """Finds the sizes and classes that `loader.load_classes` would.

  Raises:
    UserError: the set is neither there nor known.
  """
  counts, num_classes = _known(name, dir)
  names, several = tuple(f'class {i}' for i in range(num_classes)), False
  if not counts:
    found, names, _ = find_classes(name, dir)
    several = found['train'].multi_label
    counts = {split: len(part) for split, part in found.items()}
  if 'train' not in counts:
    raise errors.UserError(
      f'{name!r} has no train split, only {", ".join(counts)}; choose another '
      'data.name.'
    )
  parts = {split: range(count) for split, count in counts.items()}
  if 'val' not in parts:
    parts['train'], parts['val'] = _held_out(counts['train'], val_fraction)
  train, val, test = (parts.get(split) for split in encoded.SPLIT_NAMES)
  return Dataset(train, val, test, names, multi_label=several)


def count_domains(
  name: str, *, dir: str = '', paired: bool = False, val_fraction: float = 0.1
) -> Dataset:
  """Finds the sizes and names that `loader.load_domains` would.

  Raises:
    UserError: the set is neither there nor known, or has no two domains.
  """
  counts, _ = _known(name, dir)
  if paired or not counts:
    found = find_domains(name, dir, paired=paired)
    counts = {split: len(part) for split, part in found.items()}
  _validate_domains(name, counts)
  held = [
    _held_out(counts[s], val_fraction, LEAST) for s in ('trainA', 'trainB')
  ]
  train, val = (Pair(*pair) for pair in zip(*held, strict=True))
  test = None
  if 'testA' in counts:
    test = Pair(range(counts['testA']), range(counts['testB']))
  return Dataset(train, val, test, domain_names(name))


def validate_count(name: str, part: str, count: int, least: int) -> None:
  """Raises UserError where a part of two domains has too few images."""
  if count < least:
    raise errors.UserError(
      f'{name} has {count} image(s) in {part}; {least} are the least (an '
      'evaluation compares two or more, and val is a part of train).'
    )


def _validate_domains(name: str, counts: Mapping[str, int]) -> None:
  """Raises UserError where a domain is missing or has too few images."""
  for a, b in (('trainA', 'trainB'), ('testA', 'testB')):
    missing = [split for split in (a, b) if split not in counts]
    if len(missing) == 1 or 'trainA' in missing:
      raise errors.UserError(
        f'{name!r} has no {" and no ".join(missing)} (found: '
        f'{", ".join(counts) or "none"}); expected trainA and trainB, optional '
        'testA and testB.'
      )
  for split in filter(counts.__contains__, folders.DOMAINS):
    least = LEAST + split.startswith('train')
    validate_count(name, split, counts[split], least)


def _held_out(count: int, fraction: float, least: int = 1) -> tuple[range, ...]:
  """Counts both parts; they don't depend on the classes."""
  parts = splits.hold_out(np.zeros(count), fraction, 0, least)
  return tuple(range(len(part)) for part in parts)


def _known(name: str, data_dir: str) -> tuple[Mapping[str, int], int]:
  """Returns the row of _KNOWN of a TFDS set that isn't prepared; else nothing.

  Raises:
    UserError: the set is neither prepared nor known.
  """
  if name in ('digits', 'fruit') or name.startswith(_FOLDER):
    return {}, 0
  base, _, version = name.partition(':')
  root = data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  root = epath.Path(root).expanduser()
  if any((root / base).glob(f'{version or "*"}/dataset_info.json')):
    return {}, 0
  if base not in _KNOWN:
    raise errors.UserError(
      f'the TFDS set {name!r} is not prepared in {root}, and its size is '
      'not known here. Prepare it (a run does so where there is a network), '
      'pass --config.data.dir=FOLDER where it is, or take one of: '
      f'{", ".join(_KNOWN)}.{errors.did_you_mean(base, _KNOWN)}'
    )
  return _KNOWN[base]
