"""Counts the images and names the classes of a data set, without an image.

    data = dataset_info.of_classes('imagenet2012')
    data = dataset_info.of_domains('cycle_gan/apple2orange')

    >>> data = of_domains('fruit')
    >>> len(data.train.a), len(data.val.a), len(data.test.a)
    (360, 40, 64)

What a plan of a run needs: the parts know their lengths alone. Prepared TFDS
sets are read by their metadata, folders by counting; a few well-known sets need
not be there at all.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import catalog, encoded, splits
from vit22b_jax.data.readers import tfds

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


def of_classes(
  name: str, *, dir: str = '', val_fraction: float = 0.1
) -> catalog.Dataset:
  """Finds the sizes and classes that `loader.load_classes` would.

  Args:
    name: a TFDS set, `folder:PATH` or `digits`.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    val_fraction: share of the training set for a validation part that the set
      doesn't have, in (0, 1).

  Raises:
    UserError: the set is neither there nor known.
  """
  several = False
  if catalog.is_embedded(name):
    found, names, _ = catalog.find_classes(name, dir)
    counts = {split: len(part) for split, part in found.items()}
    several = found['train'].multi_label
  else:
    counts, names = _count_tfds(name, dir)
  if 'train' not in counts:
    raise errors.UserError(
      f'{name!r} has no train split, only {", ".join(counts)}; choose another '
      'data.name.'
    )
  train = counts['train']
  val = next(
    (counts[s] for s in encoded.SPLIT_NAMES['val'] if s in counts), None
  )
  if val is None:
    train, val = _held_out(train, val_fraction)
  test = range(counts['test']) if 'test' in counts else None
  return catalog.Dataset(
    range(train), range(val), test, tuple(names), multi_label=several
  )


def of_domains(
  name: str, *, dir: str = '', paired: bool = False, val_fraction: float = 0.1
) -> catalog.Dataset:
  """Finds the sizes and names that `loader.load_domains` would.

  Args:
    name: a TFDS set with splits trainA and trainB, `folder:PATH` or `fruit`.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    paired: as in `loader.load_domains`.
    val_fraction: share of the training images for the validation part.

  Raises:
    UserError: the set is neither there nor known, or has no two domains.
  """
  if paired or catalog.is_embedded(name):
    found = catalog.find_domains(name, dir, paired=paired)
    counts = {split: len(part) for split, part in found.items()}
  else:
    counts, _ = _count_tfds(name, dir)
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


def _count_tfds(
  name: str, data_dir: str
) -> tuple[Mapping[str, int], Sequence[str]]:
  """Counts a set's images by TFDS's splits, and names its classes.

  Raises:
    UserError: the set is neither prepared nor known.
  """
  root = epath.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  ).expanduser()
  place = _newest(root, name)
  if place is not None:
    return tfds.count(str(place))
  base = name.partition(':')[0]
  if base not in KNOWN:
    raise errors.UserError(
      f'the TFDS set {name!r} is not prepared in {root}, and its size is '
      'not known here. Prepare it (a run does so where there is a network), '
      'pass --config.data.dir=FOLDER where it is, or take one of: '
      f'{", ".join(KNOWN)}.{errors.did_you_mean(base, KNOWN)}'
    )
  counts, classes = KNOWN[base]
  return counts, [f'class {i}' for i in range(classes)]


def _newest(root: epath.Path, name: str) -> epath.Path | None:
  """Finds the folder of a set's newest version; None when there is none."""
  from tensorflow_datasets.core.utils import version as version_lib

  base, _, version = name.partition(':')
  found = [
    root / base / str(each)
    for each in version_lib.list_all_versions(root / base)
    if version in ('', str(each))
  ]
  found = [p for p in found if (p / 'dataset_info.json').exists()]
  return found[-1] if found else None
