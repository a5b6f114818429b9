"""Files, local and remote: what is one, and what tells that it has changed."""

import contextlib
import hashlib
import json
import os
from typing import Any

from etils import epath

_SAMPLE = 4096  # Bytes at the start, middle and end of a file.


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether `path` has a scheme, as `gs://bucket/folder` does."""
  return '://' in os.fspath(path)


def is_file(path: epath.Path) -> bool:
  """Returns whether there is a file; a pipe, at which reading waits, is none.

  epath takes a local pipe for a file.
  """
  return path.is_file() if is_remote(path) else os.path.isfile(path)


def write_whole(path: epath.Path, content: bytes) -> None:
  """Replaces a file in one atomic step, where storage has one.

  Raises:
    OSError: the disk is full or gone; the file that was there stays.
  """
  if is_remote(path):
    path.write_bytes(content)
    return
  new = path.with_name(f'{path.name}.new')
  try:
    new.write_bytes(content)
    new.replace(path)
  finally:
    with contextlib.suppress(OSError):
      new.unlink(missing_ok=True)


def digest(value: Any) -> str:
  """Hashes a JSON-able value to 12 hexadecimal digits.

  >>> digest({'a': 1, 'b': 2}) == digest({'b': 2, 'a': 1})
  True
  """
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def stat(path: str) -> tuple[int, ...]:
  """Returns a file's size and times; () for a dangling link."""
  try:
    if is_remote(path):
      found = epath.Path(path).stat()
      return found.length, int(found.mtime)
    found = os.stat(path)
  except OSError:
    return ()
  return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def sample(path: str) -> str:
  """Hashes a local file's start, middle and end; '' if unreadable or remote."""
  found = hashlib.sha256()
  try:
    with open(path, 'rb') as file:
      size = os.fstat(file.fileno()).st_size
      for offset in (0, size // 2, max(size - _SAMPLE, 0)):
        file.seek(offset)
        found.update(file.read(_SAMPLE))
  except OSError:
    return ''
  return found.hexdigest()[:12]
