"""Image files below a folder: what is one, and which folders are entered.

    files = walk.find_images(epath.Path('photos'))

An image is a regular file whose suffix is one of `decode.suffixes()`. Hidden
names and those of operating systems (`__MACOSX`) are left aside silently;
everything else that is left aside is counted and logged.
"""

import collections
import os
from collections.abc import Iterable

from absl import logging
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import decode, files

_SYSTEM = ('__MACOSX', '@eaDir', 'lost+found', '$RECYCLE.BIN')


class Walk:
  """Finds image files, entering each real folder once.

  A link to a folder is followed unless it leads into, or above, one of the
  `roots` that will be walked: their images would come twice, in other classes.
  `ignored` counts files of each kind that are left aside, for `log`.
  """

  def __init__(self, roots: Iterable[epath.Path]):
    self._roots = [_real(root) for root in roots]
    self._seen: set[str] = set()
    self.ignored = collections.Counter()

  def images(self, folder: epath.Path) -> list[epath.Path]:
    """Lists the image files below a folder at any depth, sorted by path.

    What should be an image but can't be read stays in the list, so that it is
    counted as corrupt: a link to nothing, a folder that can't be listed.
    """
    try:
      entries = list_folder(folder)
    except OSError as error:
      reason = error.strerror or error
      logging.warning('%s: %s', errors.printable(folder), reason)
      return [folder]
    found = []
    for path, kind in entries:
      if self.enters(path, kind):
        found += self.images(path)
      elif kind == 'other':
        self.ignored['pipe or device'] += 1
      elif kind in ('file', 'broken'):
        if path.suffix.lower() in decode.suffixes():
          found.append(path)
        else:
          self.ignored[path.suffix or 'without a suffix'] += 1
    return sorted(found)

  def enters(self, path: epath.Path, kind: str) -> bool:
    """Judges whether a path is a folder to walk, and not walked before."""
    if kind not in ('folder', 'link'):
      return False
    real = _real(path)
    inside = any(_is_below(real, r) or _is_below(r, real) for r in self._roots)
    if real in self._seen or (kind == 'link' and inside):
      self.ignored['link to a folder that is read anyway'] += 1
      return False
    self._seen.add(real)
    return True

  def left_aside(self, place: epath.Path) -> str:
    """Returns how many files of which kind were left aside; '' for none."""
    text = ', '.join(f'{n} {what}' for what, n in self.ignored.items())
    if {'.heic', '.heif'} & {what.lower() for what in self.ignored}:
      text += '. Convert HEIC images to JPEG or PNG (pillow-heif reads them)'
    return text and f'left aside in {place}: {text}'

  def log(self, place: epath.Path) -> None:
    """Logs what was left aside, if anything."""
    if text := self.left_aside(place):
      logging.warning(errors.printable(text))


def find_images(folder: epath.Path) -> list[epath.Path]:
  """Lists images as `Walk.images` does, and logs what is left aside."""
  walk = Walk([folder])
  found = walk.images(folder)
  walk.log(folder)
  return found


def list_folder(folder: epath.Path) -> list[tuple[epath.Path, str]]:
  """Lists a folder's entries but hidden and system ones, sorted by name.

  Returns:
    Each path and its kind: folder | link (to a folder) | file | broken (a link
    to nothing) | other (a pipe, a socket, a device).

  Raises:
    OSError: it can't be listed.
  """
  if files.is_remote(folder):
    found = [(p, 'folder' if p.is_dir() else 'file') for p in folder.iterdir()]
  else:
    with os.scandir(folder) as entries:
      found = [(folder / entry.name, _kind(entry)) for entry in entries]
  return sorted(
    (path, kind)
    for path, kind in found
    if not path.name.startswith('.') and path.name not in _SYSTEM
  )


def _kind(entry: os.DirEntry) -> str:
  try:
    if entry.is_dir():
      return 'link' if entry.is_symlink() else 'folder'
    if entry.is_file():
      return 'file'
    exists = os.path.exists(entry.path)
    return 'broken' if entry.is_symlink() and not exists else 'other'
  except OSError:
    return 'broken'


def _real(path: epath.Path) -> str:
  return str(path) if files.is_remote(path) else os.path.realpath(path)


def _is_below(path: str, folder: str) -> bool:
  return path == folder or path.startswith(folder.rstrip('/') + '/')
