"""Decoded arrays kept on disk, so that the second start decodes nothing.

    CACHE/NAME-PLACE-KEY/{meta.json,train_images.npy,...}

CACHE is $VIT22B_JAX_CACHE, by default ~/.cache/vit22b_jax; XDG_CACHE_HOME
moves ~/.cache.

KEY is a hash of the source's identity (files, sizes, times, image size), so
changed data never meets an old cache. Arrays come back memory-mapped: processes
of one host share them. A folder appears whole (it is renamed into place) or not
at all. It lives on a local disk; deleting it costs only time.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Shaped

# Raise when the same files would decode to other pixels.
FORMAT_VERSION = 1

Arrays = Mapping[str, Shaped[np.ndarray, '...']]


def folder(name: str, place: str, identity: Any) -> pathlib.Path:
  """Where the arrays of a source belong.

  Args:
    name: readable start of the folder's name.
    place: where the source is; of one name and place, one identity is kept.
    identity: JSON-able; equal identities mean equal arrays.
  """
  if '://' not in place:
    place = os.path.abspath(place)
  readable = re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-48:]
  keys = f'{_key(place)}-{_key([FORMAT_VERSION, identity])}'
  return root() / f'{readable}-{keys}'


def root() -> pathlib.Path:
  """The folder CACHE; need not exist."""
  found = os.environ.get('VIT22B_JAX_CACHE')
  if not found:
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    found = os.path.join(home, 'vit22b_jax')
  return pathlib.Path(found).expanduser()


def _key(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path: pathlib.Path) -> tuple[Arrays, Any] | None:
  """Arrays (memory-mapped) and meta of a folder; None without a whole one."""
  if not path.exists():
    return None
  try:
    names, meta = json.loads((path / 'meta.json').read_text())
    arrays = {
      name: np.load(path / f'{name}.npy', mmap_mode='r') for name in names
    }
  except (OSError, ValueError) as error:
    logging.warning('the cache %s is damaged and made anew: %s', path, error)
    shutil.rmtree(path, ignore_errors=True)
    return None
  return arrays, meta


def write(path: pathlib.Path, arrays: Arrays, meta: Any) -> None:
  """Writes a folder that `read` understands; warns when the disk won't.

  Args:
    path: from `folder`.
    arrays: by name.
    meta: JSON-able.
  """
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix='tmp-', dir=path.parent))
    for name, array in arrays.items():
      np.save(temporary / f'{name}.npy', array)
    (temporary / 'meta.json').write_text(json.dumps([list(arrays), meta]))
    temporary.rename(path)
    for stale in path.parent.glob(path.name.rpartition('-')[0] + '-*'):
      if stale != path:  # The source has changed since.
        shutil.rmtree(stale, ignore_errors=True)
  except OSError as error:
    # Another process may have been faster; that is as good.
    if not path.exists():
      logging.warning('decoded images are not cached in %s: %s', path, error)
    if temporary:
      shutil.rmtree(temporary, ignore_errors=True)
