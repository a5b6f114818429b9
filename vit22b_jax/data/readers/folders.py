"""`folder:PATH`: own images, as `train/CLASS/*` with optional `val` and `test`.

Without `train`, the folders of PATH are the classes. For translation:
`trainA/*` and `trainB/*` with optional `testA` and `testB`.

Any format of `decode.FORMATS`; the name of a class is the name of its folder.
Images may lie deeper in a class's folder; what counts as an image says
`walk`. PATH may be a `gs://` address.
"""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int32

from vit22b_jax import errors
from vit22b_jax.data import decode, records
from vit22b_jax.data.readers import walk as walk_lib

DOMAINS = ('trainA', 'trainB', 'testA', 'testB')
_LAYOUT = 'expected PATH/train/CLASS/* with images, optional val and test'
_DOMAINS_LAYOUT = (
  'expected PATH/trainA/* and PATH/trainB/* with images, optional testA and '
  'testB'
)
_SAMPLED = 512  # Files of which some content is hashed.


class FolderRecords(records.Records):
  """The image files of one split.

  Args:
    root: the data folder.
    files: path below it, and label, of each image.
  """

  def __init__(self, root: str, files: list[tuple[str, int]]):
    self.place = root
    self._files = files

  def __len__(self) -> int:
    return len(self._files)

  def read(self, index: int) -> tuple[bytes, int]:
    file, label = self._files[index]
    try:
      return (epath.Path(self.place) / file).read_bytes(), label
    except OSError as error:
      logging.warning('%s: %s', self.name(index), error.strerror or error)
      return b'', label

  def name(self, index: int) -> str:
    path = epath.Path(self.place) / self._files[index][0]
    return walk_lib.printable(str(path))

  def labels(self) -> Int32[np.ndarray, ' N']:
    return np.array([label for _, label in self._files], np.int32)

  def identity(self) -> list[Any]:
    """Returns name, label, size and times of every file, content of some."""
    rows = [[*file, *_stat(self._path(file[0]))] for file in self._files]
    if '://' in self.place:
      return rows
    some = self._files[:: -(-len(rows) // _SAMPLED)] if rows else []
    return [rows, [records.sample(self._path(file)) for file, _ in some]]

  def listing(self) -> list[Any]:
    """Returns name and size of every file; remote ones by name alone."""
    if '://' in self.place:
      return [file for file, _ in self._files]
    return [[file, *_stat(self._path(file))[:1]] for file, _ in self._files]

  def _path(self, file: str) -> str:
    return os.path.join(self.place, file)


def find(path: str) -> tuple[dict[str, FolderRecords], tuple[str, ...]]:
  """Lists the images of a data folder, and logs what is left aside.

  Returns:
    Records of the splits that exist, and the class names, sorted.

  Raises:
    UserError: the folder is missing, empty or laid out otherwise.
  """
  root = _open(path, _LAYOUT)
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
      continue
    if not parts:
      raise errors.UserError(
        f'{folders[split]} holds no class folder; {_LAYOUT}.'
      )
    found[split] = FolderRecords(str(root), _files(root, parts, names, walk))
  walk.log(root)
  return found, tuple(map(walk_lib.printable, names))


def find_domains(path: str) -> dict[str, FolderRecords]:
  """Lists the images of two domains: trainA and trainB, testA and testB.

  Raises:
    UserError: the folder is missing or a domain's folder has no image.
  """
  root = _open(path, _DOMAINS_LAYOUT)
  folders = {p.name: p for p in _folders(root)}
  _log_unknown(root, folders.keys() - {*DOMAINS})
  walk = walk_lib.Walk(folders[s] for s in DOMAINS if s in folders)
  found = {}
  for split in filter(folders.__contains__, DOMAINS):
    images = walk.images(folders[split])
    if not images:
      raise errors.UserError(
        f'no image in domain folder {folders[split]}; {_DOMAINS_LAYOUT}.'
      )
    found[split] = _unlabeled(root, images)
  walk.log(root)
  return found


def find_unlabeled(path: str) -> FolderRecords:
  """Lists all images below a folder, with no labels (all 0)."""
  root = epath.Path(path)
  return _unlabeled(root, walk_lib.find_images(root))


def _unlabeled(root: epath.Path, images: list[epath.Path]) -> FolderRecords:
  files = [(str(image.relative_to(root)), 0) for image in images]
  return FolderRecords(str(root), files)


def _open(path: str, layout: str) -> epath.Path:
  root = epath.Path(path).expanduser()
  if not path or not root.is_dir():
    raise errors.UserError(f'data folder {path!r} does not exist; {layout}.')
  return root


def _splits(root: epath.Path) -> dict[str, epath.Path]:
  """Finds the folder of each split that there is."""
  folders = {p.name: p for p in _folders(root)}
  found = {}
  for split, names in records.SPLIT_NAMES.items():
    there = [folders.pop(name) for name in names if name in folders]
    if len(there) > 1:
      both = ' and '.join(p.name for p in there)
      raise errors.UserError(f'{root} holds {both}: keep one of them.')
    if there:
      found[split] = there[0]
  reals = [os.path.realpath(folder) for folder in found.values()]
  if len({*reals}) < len(reals):
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
  else:
    logging.warning(
      '%s has no train folder: its %d folders are the classes, and val is held '
      'out of them',
      root,
      len(folders),
    )
    found['train'] = root
  return found


def _folders(path: epath.Path) -> list[epath.Path]:
  """Lists the folders in a folder, links to folders included."""
  try:
    entries = walk_lib.list_folder(path)
  except OSError as error:
    raise errors.UserError(
      f'{path} could not be listed: {error.strerror or error}.'
    ) from None
  return [p for p, kind in entries if kind in ('folder', 'link')]


def _log_unknown(root: epath.Path, names: Iterable[str]) -> None:
  if names:
    shown = ', '.join(map(walk_lib.printable, sorted(names)))
    logging.warning('left aside in %s: the folders %s', root, shown)


def _classes(folder: epath.Path, walk: walk_lib.Walk) -> list[epath.Path]:
  """Lists the class folders of a split; counts what lies beside them."""
  _folders(folder)  # Raises if it can't be listed.
  found = []
  for path, kind in walk_lib.list_folder(folder):
    if walk.enters(path, kind):
      found.append(path)
    elif path.suffix.lower() in decode.suffixes():
      walk.ignore(f'images in {folder.name} without a class folder')
  return found


def _files(
  root: epath.Path,
  folders: list[epath.Path],
  class_names: list[str],
  walk: walk_lib.Walk,
) -> list[tuple[str, int]]:
  """Lists path below `root` and label of every image of a split, sorted."""
  files = []
  for folder in folders:
    if folder.name not in class_names:
      raise errors.UserError(
        f'class folder {folder} has no counterpart in train, whose classes are '
        f'{", ".join(class_names[:20])}.'
      )
    images = walk.images(folder)
    if not images:
      raise errors.UserError(f'no image in class folder {folder}.')
    label = class_names.index(folder.name)
    files += [(str(image.relative_to(root)), label) for image in images]
  return files


def _stat(path: str) -> tuple[int, ...]:
  """Returns a file's size and times in nanoseconds; () for a dangling link."""
  try:
    if '://' in path:
      stat = epath.Path(path).stat()
      return stat.length, int(stat.mtime)
    stat = os.stat(path)
  except OSError:
    return ()
  return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
