"""Data sets by name: their records, parts and names, for both tasks.

    found, names, side = catalog.find_classes('folder:images', dir='')
    found = catalog.find_domains('cycle_gan/monet2photo', dir='...')

`loader` turns what is found into splits.
"""

import dataclasses
import re
from collections.abc import Mapping

from vit22b_jax import errors
from vit22b_jax.data import encoded, splits
from vit22b_jax.data.readers import digits, folders, fruit, tfds

# A distance between two sets needs a covariance, so two images.
LEAST = 2
_FOLDER = 'folder:'


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


def is_embedded(name: str) -> bool:
  """Returns whether a name is no TFDS set."""
  return name in ('digits', 'fruit') or name.startswith(_FOLDER)


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
  validate_domains(name, {split: len(part) for split, part in found.items()})
  return {split: found[split] for split in folders.DOMAINS if split in found}


def validate_domains(name: str, counts: Mapping[str, int]) -> None:
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


def validate_count(name: str, part: str, count: int, least: int) -> None:
  """Raises UserError where a part of two domains has too few images."""
  if count < least:
    raise errors.UserError(
      f'{name} has {count} image(s) in {part}; {least} are the least (an '
      'evaluation compares two or more, and val is a part of train).'
    )
