"""Reads `.npz` files that anyone may have written: no code, no surprises.

arrays = npz_file.read('photos.npz')
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from vit22b_jax import errors

_FORMAT = np.lib.format


def read(
  path: epath.PathLike, max_bytes: float = math.inf
) -> dict[str, np.ndarray]:
  """Returns a file's arrays by name, whatever their types but objects.

  Nothing is allocated by what a header promises: sizes are compared with the
  bytes that are there.

  Args:
    path: of the file.
    max_bytes: of all arrays together.

  Raises:
    UserError: no zip archive, damaged or encrypted, larger than expected, or
      an array of Python objects, which only unpickling would read.
  """
  path = epath.Path(path)
  try:
    return dict(_read_members(path.read_bytes(), max_bytes))
  except (
    *(OSError, EOFError, ValueError, SyntaxError, TypeError, OverflowError),
    *(RuntimeError, NotImplementedError),  # encrypted; an unknown compression
    *(zipfile.BadZipFile, zlib.error, MemoryError, RecursionError),
  ) as error:
    raise errors.UserError(
      f'{path} is damaged, or no .npz file of arrays: '
      f'{str(error) or type(error).__name__}'
    ) from error


def _read_members(
  data: bytes, max_bytes: float
) -> Iterator[tuple[str, np.ndarray]]:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = [m for m in archive.infolist() if m.filename.endswith('.npy')]
    size = sum(member.file_size for member in members)
    if size > max_bytes:
      raise ValueError(f'it holds {size:,} bytes, {max_bytes:,} were expected')
    for member in members:
      name = member.filename.removesuffix('.npy')
      yield name, _read_array(name, archive.read(member))


def _read_array(name: str, data: bytes) -> np.ndarray:
  """Returns the array of a `.npy` file."""
  stream = io.BytesIO(data)
  version = _FORMAT.read_magic(stream)
  read_header = {
    (1, 0): _FORMAT.read_array_header_1_0,
    (2, 0): _FORMAT.read_array_header_2_0,
  }.get(version)
  if read_header is None:
    raise ValueError(f'{name} is in version {version} of the format')
  shape, fortran, dtype = read_header(stream)
  if dtype.hasobject:
    raise ValueError(f'{name} holds Python objects, which could run code')
  left = len(data) - stream.tell()
  if math.prod(shape) * dtype.itemsize != left:
    raise ValueError(
      f'{name} is said to have shape {shape} of {dtype}, with {left:,} bytes'
    )
  if not left:
    return np.zeros(shape, dtype)
  array = np.frombuffer(data, dtype, offset=stream.tell())
  return array.reshape(shape, order='F' if fortran else 'C')
