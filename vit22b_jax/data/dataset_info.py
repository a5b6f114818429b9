"""Counts the images and names the classes of a data set, without an image.

    >>> data = of_domains('fruit')
    >>> len(data.train.a), len(data.val.a), len(data.test.a)
    (360, 40, 64)

What a plan of a run needs: parts are ranges. A few well-known TFDS sets need
not be there at all; others are found as in earnest.
"""

import os
from collections.abc import Mapping

import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import catalog, encoded, splits
from vit22b_jax.data.readers import folders

# Images by split and number of classes, as https://www.tensorflow.org/datasets/
# catalog/NAME lists them. ImageNet's test part has no labels: left aside.
KNOWN = {
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


def of_classes(
  name: str, *, dir: str = '', val_fraction: float = 0.1
) -> catalog.Dataset:
  """Finds the sizes and classes that `loader.load_classes` would.

  Raises:
    UserError: the set is neither there nor known.
  """
  counts, num_classes = _known(name, dir)
  names, several = tuple(f'class {i}' for i in range(num_classes)), False
  if not counts:
    found, names, _ = catalog.find_classes(name, dir)
    several = found['train'].multi_label
    counts = {split: len(part) for split, part in found.items()}
  if 'train' not in counts:
    raise errors.UserError(
      f'{name!r} has no train split, only {", ".join(counts)}; choose another '
      'data.name.'
    )
  if 'val' not in counts:
    train, val = _held_out(counts['train'], val_fraction)
    counts = {**counts, 'train': train, 'val': val}
  train, val, test = (
    range(counts[s]) if s in counts else None for s in encoded.SPLIT_NAMES
  )
  return catalog.Dataset(train, val, test, names, multi_label=several)


def of_domains(
  name: str, *, dir: str = '', paired: bool = False, val_fraction: float = 0.1
) -> catalog.Dataset:
  """Finds the sizes and names that `loader.load_domains` would.

  Raises:
    UserError: the set is neither there nor known, or has no two domains.
  """
  counts, _ = _known(name, dir)
  if paired or not counts:
    found = catalog.find_domains(name, dir, paired=paired)
    counts = {split: len(part) for split, part in found.items()}
  catalog.validate_domains(name, counts)
  held = [
    _held_out(counts[s], val_fraction, catalog.LEAST)
    for s in ('trainA', 'trainB')
  ]
  train, val = (
    catalog.Pair(*map(range, pair)) for pair in zip(*held, strict=True)
  )
  test = None
  if 'testA' in counts:
    test = catalog.Pair(range(counts['testA']), range(counts['testB']))
  return catalog.Dataset(train, val, test, catalog.domain_names(name))


def _held_out(count: int, fraction: float, least: int = 1) -> tuple[int, int]:
  """Counts both parts; they don't depend on the classes."""
  parts = splits.hold_out(np.zeros(count), fraction, 0, least)
  return len(parts[0]), len(parts[1])


def _known(name: str, data_dir: str) -> tuple[Mapping[str, int], int]:
  """Returns the row of KNOWN of a TFDS set that isn't prepared; else nothing.

  Raises:
    UserError: the set is neither prepared nor known.
  """
  if catalog.is_embedded(name):
    return {}, 0
  base, _, version = name.partition(':')
  root = data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  root = epath.Path(root).expanduser()
  if any((root / base).glob(f'{version or "*"}/dataset_info.json')):
    return {}, 0
  if base not in KNOWN:
    raise errors.UserError(
      f'the TFDS set {name!r} is not prepared in {root}, and its size is '
      'not known here. Prepare it (a run does so where there is a network), '
      'pass --config.data.dir=FOLDER where it is, or take one of: '
      f'{", ".join(KNOWN)}.{errors.did_you_mean(base, KNOWN)}'
    )
  return KNOWN[base]
