"""How many images and which classes a data set has, without an image of it.

    data = facts.dataset('imagenet2012')              # like sources.load
    data = facts.domains('cycle_gan/apple2orange')    # like domains.load

    >>> data = domains('fruit')
    >>> len(data.train.a), len(data.val.a), len(data.test.a)
    (360, 40, 64)

What a plan of a run needs: the parts know their lengths alone. Prepared TFDS
sets are read by their metadata, folders by counting; a few well-known sets need
not be there at all.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from vit22b_jax import errors
from vit22b_jax.data import digits, folder, fruit, sources, splits
from vit22b_jax.data import domains as domains_lib

# Images by split and number of classes, as https://www.tensorflow.org/datasets/
# catalog/NAME lists them. ImageNet's test part has no labels: left aside.
KNOWN = {
  'cifar10': ({'train': 50_000, 'test': 10_000}, 10),
  'cifar100': ({'train': 50_000, 'test': 10_000}, 100),
  'imagenet2012': ({'train': 1_281_167, 'validation': 50_000}, 1000),
  'cycle_gan/apple2orange': (
    {'trainA': 995, 'trainB': 1019, 'testA': 266, 'testB': 248},
    2,
  ),
  'cycle_gan/horse2zebra': (
    {'trainA': 1067, 'trainB': 1334, 'testA': 120, 'testB': 140},
    2,
  ),
  'cycle_gan/monet2photo': (
    {'trainA': 1072, 'trainB': 6287, 'testA': 121, 'testB': 751},
    2,
  ),
}
_FOLDER = 'folder:'
_VALIDATION = ('validation', 'val', 'valid', 'dev')


class Counted:
  """A split of which the length alone is known."""

  def __init__(self, count: int):
    self._count = count

  def __len__(self) -> int:
    return self._count


def dataset(
  name: str, *, dir: str = '', val_fraction: float = 0.1
) -> sources.Dataset:
  """The sizes and classes that `sources.load` would find.

  Args:
    name: a TFDS set, `folder:PATH` or `digits`.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    val_fraction: share of the training set for a validation part that the set
      doesn't have, in (0, 1).

  Raises:
    UserError: the set is neither there nor known.
  """
  if name == 'digits':
    counts = {split: len(part) for split, part in digits.load(8).items()}
    class_names = digits.CLASS_NAMES
  elif name.startswith(_FOLDER):
    records, class_names = folder.find(name.removeprefix(_FOLDER))
    counts = {split: len(part) for split, part in records.items()}
  else:
    counts, class_names = _tfds(name, dir)
  if 'train' not in counts:
    raise errors.UserError(
      f'{name!r} has no train split, only {", ".join(counts)}; choose another '
      'data.name.'
    )
  train = counts['train']
  val = next((counts[s] for s in _VALIDATION if s in counts), None)
  if val is None:
    train, val = _held_out(train, val_fraction)
  test = Counted(counts['test']) if 'test' in counts else None
  return sources.Dataset(Counted(train), Counted(val), test, class_names)


def domains(
  name: str, *, dir: str = '', val_fraction: float = 0.1
) -> domains_lib.Domains:
  """The sizes and names that `domains.load` would find.

  Args:
    name: a TFDS set with splits trainA and trainB, `folder:PATH` or `fruit`.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    val_fraction: share of the training images for the validation part.

  Raises:
    UserError: the set is neither there nor known, or has no two domains.
  """
  if name == 'fruit':
    counts = {split: len(part) for split, part in fruit.find().items()}
  elif name.startswith(_FOLDER):
    records = folder.find_domains(name.removeprefix(_FOLDER))
    counts = {split: len(part) for split, part in records.items()}
  else:
    counts, _ = _tfds(name, dir)
  missing = [split for split in ('trainA', 'trainB') if split not in counts]
  if missing:
    raise errors.UserError(
      f'{name!r} has no {" and no ".join(missing)}: choose a data.name with '
      'two domains.'
    )
  held = [
    _held_out(counts[s], max(val_fraction, domains_lib.LEAST / counts[s]))
    for s in ('trainA', 'trainB')
  ]
  train, val = (
    domains_lib.Pair(*map(Counted, pair)) for pair in zip(*held, strict=True)
  )
  test = None
  if {'testA', 'testB'} <= set(counts):
    test = domains_lib.Pair(Counted(counts['testA']), Counted(counts['testB']))
  return domains_lib.Domains(domains_lib.names_of(name), train, val, test)


def _held_out(count: int, fraction: float) -> tuple[int, int]:
  first, second = splits.hold_out(_one_class(count), fraction, seed=0)
  return len(first), len(second)


def _one_class(count: int) -> Int[np.ndarray, ' N']:
  """Labels; how many are held out doesn't depend on the classes."""
  return np.zeros(count, np.int32)


def _tfds(name: str, dir: str) -> tuple[Mapping[str, int], tuple[str, ...]]:
  """Images by split, and class names, of a set as prepared or else as known."""
  place = _prepared(name, dir)
  if place is not None:
    info = json.loads((place / 'dataset_info.json').read_text())
    counts = {
      split['name']: sum(map(int, split['shardLengths']))
      for split in info['splits']
    }
    return counts, _class_names(place)
  base = name.partition(':')[0]
  if base not in KNOWN:
    raise errors.UserError(
      f'the TFDS set {name!r} is not prepared in {_root(dir)}, and its size is '
      'not known here. Prepare it (a run does so where there is a network), '
      'pass --config.data.dir=FOLDER where it is, or take one of: '
      f'{", ".join(KNOWN)}.{errors.did_you_mean(base, KNOWN)}'
    )
  counts, classes = KNOWN[base]
  return counts, _numbered(classes)


def _root(dir: str) -> epath.Path:
  # TFDS's own default, which takes seconds to import.
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return epath.Path(dir or default).expanduser()


def _prepared(name: str, dir: str) -> epath.Path | None:
  """The folder of a set's newest version; None when there is none."""
  base, _, version = name.partition(':')
  folder_ = _root(dir) / base
  if not folder_.is_dir():
    return None
  found = [
    path
    for path in folder_.iterdir()
    if re.fullmatch(r'\d+\.\d+\.\d+', path.name)
    and version in ('', path.name)
    and (path / 'dataset_info.json').exists()
  ]
  numbers = [tuple(map(int, path.name.split('.'))) for path in found]
  return max(zip(numbers, found, strict=True))[1] if found else None


def _class_names(place: epath.Path) -> tuple[str, ...]:
  """Of the set's label; () where it has none."""
  described = json.loads((place / 'features.json').read_text())
  features: dict[str, Any] = described.get('featuresDict', {})
  for key, feature in features.get('features', {}).items():
    if 'classLabel' in feature:
      file = place / f'{key}.labels.txt'
      if file.exists():
        return tuple(file.read_text().splitlines())
      return _numbered(int(feature['classLabel']['numClasses']))
  return ()


def _numbered(count: int) -> tuple[str, ...]:
  return tuple(f'class {i}' for i in range(count))
