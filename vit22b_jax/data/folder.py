"""`folder:PATH`: own images, as `train/CLASS/*` with optional `val` and `test`.

For translation: `trainA/*` and `trainB/*` with optional `testA` and `testB`.

Any format that Pillow reads; the name of a class is the name of its folder.
Images may lie deeper in a class's folder; what counts as an image says
`images.find`. PATH may be a `gs://` address.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int32

from vit22b_jax import errors
from vit22b_jax.data import images as images_lib

_LAYOUT = 'expected PATH/train/CLASS/* with images, optional val and test'
_DOMAINS_LAYOUT = (
  'expected PATH/trainA/* and PATH/trainB/* with images, optional testA and '
  'testB'
)


class FolderRecords:
  """The image files of one split; picklable."""

  random_access = True

  def __init__(self, root: str, files: list[tuple[str, int]]):
    self.place = root
    self._files = files

  def __len__(self) -> int:
    return len(self._files)

  def read(self, index: int) -> tuple[bytes, int]:
    """The file's bytes and its label."""
    file, label = self._files[index]
    try:
      return (epath.Path(self.place) / file).read_bytes(), label
    except OSError as error:
      # Empty bytes are a corrupt image, to be counted like the others.
      logging.warning('%s', error)
      return b'', label

  def name(self, index: int) -> str:
    """The file's path."""
    return str(epath.Path(self.place) / self._files[index][0])

  def labels(self) -> Int32[np.ndarray, ' N']:
    """Every label."""
    return np.array([label for _, label in self._files], np.int32)

  def readers(self) -> Iterator[Callable[[], tuple[bytes, int]]]:
    """What reads each record, in order; to be called from any thread."""
    return (functools.partial(self.read, row) for row in range(len(self)))

  def identity(self) -> list[tuple[str, int, int, int]]:
    """Name, label, size and time of every file: changes when the data do."""
    rows = []
    for file, label in self._files:
      stat = (epath.Path(self.place) / file).stat()
      rows.append((file, label, stat.length, int(stat.mtime)))
    return rows


def find(path: str) -> tuple[dict[str, FolderRecords], tuple[str, ...]]:
  """Lists the images of a data folder.

  Returns:
    Records of the splits that exist, and the class names, sorted.

  Raises:
    UserError: the folder is missing, empty or laid out otherwise.
  """
  root = epath.Path(path).expanduser()
  if not path or not root.is_dir():
    raise errors.UserError(f'data folder {path!r} does not exist; {_LAYOUT}.')
  if not (root / 'train').is_dir():
    found = ', '.join(sorted(p.name for p in root.iterdir())[:10]) or 'nothing'
    raise errors.UserError(f'no train folder in {path!r} ({found}); {_LAYOUT}.')
  class_names = _classes(root / 'train')
  if len(class_names) < 2:
    raise errors.UserError(
      f'{root / "train"} holds {len(class_names)} class folder(s), '
      f'two are the least; {_LAYOUT}.'
    )
  records = {
    split: FolderRecords(str(root), _files(root, split, class_names))
    for split in ('train', 'val', 'test')
    if (root / split).is_dir()
  }
  return records, class_names


def find_domains(path: str) -> dict[str, FolderRecords]:
  """Lists the images of two domains: trainA and trainB, testA and testB.

  Raises:
    UserError: the folder is missing or a domain's folder has no image.
  """
  root = epath.Path(path).expanduser()
  if not path or not root.is_dir():
    raise errors.UserError(
      f'data folder {path!r} does not exist; {_DOMAINS_LAYOUT}.'
    )
  records = {}
  for split in ('trainA', 'trainB', 'testA', 'testB'):
    if (root / split).is_dir():
      images = images_lib.find(root / split)
      if not images:
        raise errors.UserError(
          f'no image in domain folder {root / split}; {_DOMAINS_LAYOUT}.'
        )
      files = [(str(image.relative_to(root)), 0) for image in images]
      records[split] = FolderRecords(str(root), files)
  return records


def _classes(path: epath.Path) -> tuple[str, ...]:
  names = (p.name for p in path.iterdir() if p.is_dir())
  return tuple(sorted(name for name in names if not name.startswith('.')))


def _files(
  root: epath.Path, split: str, class_names: tuple[str, ...]
) -> list[tuple[str, int]]:
  """Path below `root` and label of every image of a split, sorted."""
  files = []
  for name in _classes(root / split):
    if name not in class_names:
      raise errors.UserError(
        f'class folder {root / split / name} has no counterpart in '
        f'{root / "train"}, whose classes are {", ".join(class_names[:20])}.'
      )
    images = images_lib.find(root / split / name)
    if not images:
      raise errors.UserError(f'no image in class folder {root / split / name}.')
    label = class_names.index(name)
    files += [(str(image.relative_to(root)), label) for image in images]
  if not files:
    raise errors.UserError(f'{root / split} holds no class folder; {_LAYOUT}.')
  return files
