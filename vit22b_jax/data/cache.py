"""Decoded arrays kept on disk, so that the second start decodes nothing.

    CACHE/NAME-PLACE-KEY/{meta.json,train_images.npy,...}

KEY hashes the source's identity (files, sizes, times, some content, image
size), so changed data never meets an old cache. Arrays come back memory-mapped:
processes of one host share them. A folder appears whole or not at all, and each
array is compared with its checksum when it is read.
"""

import json
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Shaped

from vit22b_jax.data import files

# Raise when the same files would decode to other pixels.
FORMAT_VERSION = 4

Arrays = Mapping[str, Shaped[np.ndarray, '...']]


def folder(name: str, place: str, identity: Any) -> pathlib.Path:
  """Returns where the arrays of a source belong.

  Of one name and place, one identity is kept; equal identities (JSON-able) mean
  equal arrays.
  """
  if not files.is_remote(place):
    place = os.path.abspath(place)
  readable = re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-48:]
  key = files.digest([FORMAT_VERSION, identity])
  return root() / f'{readable}-{files.digest(place)}-{key}'


def root() -> pathlib.Path:
  """Returns CACHE: $VIT22B_JAX_CACHE, or by default ~/.cache/vit22b_jax.

  XDG_CACHE_HOME moves ~/.cache. It need not exist, and deleting it costs only
  time.
  """
  found = os.environ.get('VIT22B_JAX_CACHE')
  if not found:
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    found = os.path.join(home, 'vit22b_jax')
  return pathlib.Path(found).expanduser()


def read(path: pathlib.Path) -> tuple[Arrays, Any] | None:
  """Returns the arrays (memory-mapped) and meta of a folder that `write` made.

  Returns None without a folder, and deletes a damaged one.
  """
  if not path.exists():
    return None
  try:
    checksum, _, text = (path / 'meta.json').read_text().partition('\n')
    if int(checksum) != zlib.crc32(text.encode()):
      raise ValueError('meta.json differs from its checksum')
    checksums, meta = json.loads(text)
    arrays = {}
    for name, checksum in checksums.items():
      arrays[name] = np.load(path / f'{name}.npy', mmap_mode='r')
      if _checksum(arrays[name]) != checksum:
        raise ValueError(f'{name}.npy differs from its checksum')
    return arrays, meta
  # What a damaged file raises depends on the byte that is damaged.
  except (OSError, ValueError, EOFError) as error:
    logging.warning('the cache %s is damaged and made anew: %s', path, error)
    shutil.rmtree(path, ignore_errors=True)
    return None


def write(path: pathlib.Path, arrays: Arrays, meta: Any) -> None:
  """Writes a folder that `read` understands; warns when the disk won't."""
  checksums = {name: _checksum(array) for name, array in arrays.items()}
  text = json.dumps([checksums, meta]).encode()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='tmp-', dir=path.parent) as new:
      for name, array in arrays.items():
        with open(f'{new}/{name}.npy', 'wb', buffering=0) as file:
          np.save(file, array)
          os.fsync(file.fileno())
      with open(f'{new}/meta.json', 'wb', buffering=0) as file:
        file.write(b'%d\n%b' % (zlib.crc32(text), text))
        os.fsync(file.fileno())
      os.rename(new, path)
    for stale in path.parent.glob(path.name.rpartition('-')[0] + '-*'):
      if stale != path:  # The source has changed since.
        shutil.rmtree(stale, ignore_errors=True)
  except OSError as error:
    # Another process may have been faster; that is as good.
    if not path.exists():
      logging.warning('decoded images are not cached in %s: %s', path, error)


def _checksum(array: Shaped[np.ndarray, '...']) -> list[Any]:
  """Returns the shape, the type and the CRC of an array."""
  crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return [list(array.shape), str(array.dtype), crc]
