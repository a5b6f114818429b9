"""Reads `.npz` files that anyone may have written: no code, no surprises.

arrays = npz_file.read('photos.npz')
"""

import io
import math
import zipfile
import zlib

import numpy as np
from etils import epath

from vit22b_jax import errors

_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
# What reading a damaged file raises.
FAULTS = (
  *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError),
  *(OverflowError, MemoryError, RecursionError),
  *(RuntimeError, NotImplementedError),  # encrypted; an unknown compression
  *(zipfile.BadZipFile, zlib.error),
)


def read(
  path: epath.PathLike, max_bytes: float = math.inf
) -> dict[str, np.ndarray]:
  """Returns a file's arrays by name, whatever their types but objects.

  Args:
    path: of the file.
    max_bytes: of all arrays together.

  Raises:
    UserError: no zip archive, damaged or encrypted, larger than expected, or
      an array of Python objects, which only unpickling would read.
  """
  path = epath.Path(path)
  try:
    return parse(path.read_bytes(), max_bytes)
  except FAULTS as error:
    raise errors.UserError(
      f'{path} is damaged, or no .npz file of arrays: '
      f'{str(error) or type(error).__name__}'
    ) from error


def parse(data: bytes, max_bytes: float = math.inf) -> dict[str, np.ndarray]:
  """Returns the arrays of a file's content; raises one of FAULTS."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = [m for m in archive.infolist() if m.filename.endswith('.npy')]
    size = sum(member.file_size for member in members)
    if size > max_bytes:
      raise ValueError(f'it holds {size:,} bytes, {max_bytes:,} were expected')
    names = [member.filename.removesuffix('.npy') for member in members]
    return {
      name: _parse_array(name, archive.read(member))
      for name, member in zip(names, members, strict=True)
    }


def _parse_array(name: str, data: bytes) -> np.ndarray:
  """Returns the array of a `.npy` file.

  Nothing is allocated by what a header promises: sizes are compared with the
  bytes that are there.
  """
  stream = io.BytesIO(data)
  version = np.lib.format.read_magic(stream)
  if version not in _HEADERS:
    raise ValueError(f'{name} is in version {version} of the format')
  shape, fortran, dtype = _HEADERS[version](stream)
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
