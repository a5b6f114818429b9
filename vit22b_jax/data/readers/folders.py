"""`folder:PATH`: own images, as `train/CLASS/*` with optional `val` and `test`.

Without `train`, the folders of PATH are the classes; with `labels.csv` it names
them (see `tables`). For translation: `trainA/*` and `trainB/*` with optional
`testA` and `testB`; paired images have equal names, or stand side by side in
one file of `train/*` and optional `test/*`.

Any format of `decode.formats`; the name of a class is the name of its folder.
Images may lie deeper in it; what counts as an image says `walk`. PATH may be a
`gs://` address.
"""

import collections
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import decode, encoded
from vit22b_jax.data.readers import tables
from vit22b_jax.data.readers import walk as walk_lib

# Names that people give to parts of a set; ours are `encoded.SPLIT_NAMES`.
_SPLIT_LIKE = re.compile(
  'train(ing)?|val(id(ation)?)?|test(ing)?|eval', re.IGNORECASE
)
DOMAINS = ('trainA', 'trainB', 'testA', 'testB')
_LAYOUT = (
  'expected PATH/train/CLASS/* with images, optional val and test, or '
  'PATH/CLASS/* alone'
)
_PAIRS_LAYOUT = (
  'expected PATH/trainA/* and PATH/trainB/* with images of equal names, or '
  'PATH/train/* with both of a pair side by side; optional testA and testB, or '
  'test'
)
_DOMAINS_LAYOUT = (
  'expected PATH/trainA/* and PATH/trainB/* with images, optional testA and '
  'testB'
)


def find(path: str) -> tuple[dict[str, encoded.Files], tuple[str, ...]]:
  """Lists the images of the splits there are, and the classes; logs the rest.

  Classes are the folders', sorted, or those of a table (`tables`).

  Raises:
    UserError: the folder is missing, empty or laid out otherwise.
  """
  root = _open(path, _LAYOUT)
  if (root / tables.NAME).exists():
    return tables.find(root)
  folders = _splits(root)
  walk = walk_lib.Walk(folders.values())
  classes = {split: _classes(folder, walk) for split, folder in folders.items()}
  names = [folder.name for folder in classes['train']]
  if len(names) < 2:
    raise errors.UserError(
      f'{folders["train"]} holds {len(names)} class folder(s), '
      f'two are the least; {_LAYOUT}.'
    )
  found = {}
  for split, parts in classes.items():
    if not parts and split == 'test' and walk.images(folders['test']):
      logging.warning('%s has no class folders: left aside', folders['test'])
    elif parts:
      found[split] = _labeled(root, parts, names, walk)
    else:
      raise errors.UserError(
        f'{folders[split]} holds no class folder; {_LAYOUT}.'
      )
  walk.log(root)
  return found, tuple(map(errors.printable, names))


def find_domains(path: str, paired: bool) -> dict[str, encoded.Records]:
  """Lists the images of two domains: trainA and trainB, testA and testB.

  Raises:
    UserError: the folder is missing, a domain's folder has no image or, where
      images are paired, not those of the other's.
  """
  root = _open(path, _PAIRS_LAYOUT if paired else _DOMAINS_LAYOUT)
  folders = {p.name: p for p in _folders(root)}
  if not paired or 'trainA' in folders or 'trainB' in folders:
    found = _images(root, folders, DOMAINS, _DOMAINS_LAYOUT)
    return _matched(root, found) if paired else found
  if 'train' not in folders:
    raise errors.UserError(
      f'no train folder in {str(root)!r}; {_PAIRS_LAYOUT}.'
    )
  whole = _images(root, folders, ('train', 'test'), _PAIRS_LAYOUT)
  return {
    f'{split}{"AB"[side]}': encoded.Halves(images.place, images.files, side)
    for split, images in whole.items()
    for side in range(2)
  }


def _images(
  root: epath.Path,
  folders: Mapping[str, epath.Path],
  names: Sequence[str],
  layout: str,
) -> dict[str, encoded.Files]:
  """Lists the images of those folders of `names` that there are."""
  _log_unknown(root, folders.keys() - {*names})
  there = [name for name in names if name in folders]
  walk = walk_lib.Walk(folders[name] for name in there)
  found = {name: _files(root, walk.images(folders[name])) for name in there}
  for name, images in found.items():
    if not len(images):
      aside = walk.left_aside(root)
      raise errors.UserError(
        f'no image in folder {folders[name]}; {aside or layout}.'
      )
  walk.log(root)
  return found


def _matched(
  root: epath.Path, found: dict[str, encoded.Files]
) -> dict[str, encoded.Files]:
  """Puts images of trainA and trainB (testA and testB) in one order, of names.

  Names are paths below the folders, without suffix.
  """
  named = {}
  for split, part in found.items():
    names = (os.path.splitext(os.path.relpath(f, split))[0] for f in part.files)
    named[split] = sorted(zip(names, part.files, strict=True))
  for a, b in (DOMAINS[:2], DOMAINS[2:]):
    first, second = (
      collections.Counter(name for name, _ in named.get(s, ())) for s in (a, b)
    )
    alone = sorted((first - second) + (second - first))
    if alone and a in found and b in found:
      raise errors.UserError(
        f"data.pairing='paired', but {len(alone)} image(s) of {a} and {b} in "
        f'{str(root)!r} have no partner of their name, such as {alone[0]!r}; '
        f'{_PAIRS_LAYOUT}.'
      )
  return {
    split: encoded.Files(os.fspath(root), [file for _, file in files])
    for split, files in named.items()
  }


def find_unlabeled(path: str) -> encoded.Files:
  """Lists all images below a folder, with no labels (all 0)."""
  root = epath.Path(path)
  return _files(root, walk_lib.find_images(root))


def _files(
  root: epath.Path,
  images: list[epath.Path],
  labels: encoded.Labels | None = None,
) -> encoded.Files:
  paths = [os.fspath(image.relative_to(root)) for image in images]
  return encoded.Files(os.fspath(root), paths, labels)


def _open(path: str, layout: str) -> epath.Path:
  root = epath.Path(path).expanduser()
  if not path or not root.is_dir():
    place = '' if root.is_absolute() else f' in {os.getcwd()}'
    raise errors.UserError(f'there is no folder {path!r}{place}; {layout}.')
  return root


def _splits(root: epath.Path) -> dict[str, epath.Path]:
  """Finds the folder of each split that there is."""
  folders = {p.name: p for p in _folders(root)}
  found = {}
  for split, names in encoded.SPLIT_NAMES.items():
    there = [folders.pop(name) for name in names if name in folders]
    if len(there) > 1:
      both = ' and '.join(p.name for p in there)
      raise errors.UserError(f'{root} holds {both}: keep one of them.')
    if there:
      found[split] = there[0]
  if len({os.path.realpath(folder) for folder in found.values()}) < len(found):
    both = ' and '.join(p.name for p in found.values())
    raise errors.UserError(f'{root}: {both} are links to one folder.')
  if 'train' in found:
    _log_unknown(root, folders)
  elif found or len(folders) < 2 or not folders.keys().isdisjoint(DOMAINS):
    shown = ', '.join(sorted({*folders} | {p.name for p in found.values()}))
    raise errors.UserError(
      f'no train folder in {str(root)!r} ({shown[:200] or "no folder"}); '
      f'{_LAYOUT}.'
    )
  elif len(alike := [*filter(_SPLIT_LIKE.fullmatch, folders)]) > 1:
    raise errors.UserError(
      f'no train folder in {str(root)!r}, whose folders {", ".join(alike)} '
      'look like parts of a data set: rename them to train, val and test.'
    )
  else:
    logging.warning(
      '%s has no train folder: its %d folders are the classes, and val is held '
      'out of them',
      root,
      len(folders),
    )
    found['train'] = root
  return found


def _entries(path: epath.Path) -> list[tuple[epath.Path, str]]:
  try:
    return walk_lib.list_folder(path)
  except OSError as error:
    raise errors.UserError(
      f'{path} could not be listed: {error.strerror or error}.'
    ) from None


def _folders(path: epath.Path) -> list[epath.Path]:
  """Lists the folders in a folder, links to folders included."""
  return [p for p, kind in _entries(path) if kind in ('folder', 'link')]


def _log_unknown(root: epath.Path, names: Iterable[str]) -> None:
  if names:
    shown = errors.printable(', '.join(sorted(names)))
    logging.warning('left aside in %s: the folders %s', root, shown)


def _classes(folder: epath.Path, walk: walk_lib.Walk) -> list[epath.Path]:
  """Lists the class folders of a split; counts what lies beside them.

  Raises:
    UserError: a class is a link to a folder whose images are read already.
  """
  found = []
  for path, kind in _entries(folder):
    if walk.enters(path, kind):
      found.append(path)
    elif kind == 'link':
      raise errors.UserError(
        f'class folder {path} is a link to {os.path.realpath(path)}, which is '
        'read already: delete the link, or put a folder of other images there.'
      )
    elif path.suffix.lower() in decode.suffixes():
      walk.ignored[f'images in {folder.name} without a class folder'] += 1
  return found


def _labeled(
  root: epath.Path,
  folders: list[epath.Path],
  class_names: list[str],
  walk: walk_lib.Walk,
) -> encoded.Files:
  """Lists the images of a split's class folders, sorted."""
  images, labels = [], []
  for folder in folders:
    if folder.name not in class_names:
      raise errors.UserError(
        f'class folder {folder} has no counterpart in train, whose classes are '
        f'{", ".join(class_names[:20])}.'
      )
    found = walk.images(folder)
    if not found:
      aside = walk.left_aside(root)
      raise errors.UserError(
        f'no image in class folder {folder}{"; " * bool(aside)}{aside}.'
      )
    images += found
    labels += [class_names.index(folder.name)] * len(found)
  return _files(root, images, np.array(labels, np.int32))
