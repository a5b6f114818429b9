"""Reads files of a run and judges them once, before anything uses them.

    rows = formats.read_rows(path, formats.Fields({'kind': str}))

A file that was edited or broke ends in one UserError, which names the file, the
place in it and what was expected there. JSON has no NaN and no infinity: the
files have the texts 'nan', 'inf' and '-inf' in their place.
"""

import contextlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from vit22b_jax import errors
from vit22b_jax.data import files

_WORDS = {
  int: 'a whole number from 0 on',
  float: 'a number',
  str: 'text',
  bool: 'true or false',
  list: 'a list of texts',
  dict: 'an object',
}
_LARGEST = 10**15  # of steps and counts
_ARRAY_BYTES = 2**31  # of all arrays of a file, at most
# What reading a damaged file raises.
_FAULTS = (
  *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError),
  *(OverflowError, MemoryError, RecursionError),
  *(RuntimeError, NotImplementedError),  # encrypted; an unknown compression
  *(zipfile.BadZipFile, zlib.error),
)


class Fields(NamedTuple):
  """Keys of a JSON object, with the types of their values."""

  required: Mapping[str, type] = {}
  optional: Mapping[str, type] = {}  # may be missing or None
  others: type | None = None  # of all other values, or None; None allows any


def strict(content: Any) -> Any:
  """Returns `content` with 'nan', 'inf' and '-inf' for such numbers."""
  if isinstance(content, Mapping):
    return {key: strict(value) for key, value in content.items()}
  if isinstance(content, list | tuple):
    return [strict(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return str(content)
  return content


def line(row: Mapping[str, Any]) -> str:
  """Returns a row of a .jsonl file."""
  return json.dumps(strict(row), allow_nan=False)


def read_bytes(path: epath.Path) -> bytes | None:
  """Returns the content of a file; None where there is none.

  Raises:
    errors.UserError: it can't be read, or is a folder or a pipe.
  """
  with judging(path):
    if not path.exists():
      return None
    if not files.is_file(path):
      raise OSError(0, 'no regular file')
    return path.read_bytes()


def read_json(path: epath.Path, fields: Fields | type | None = None) -> Any:
  """Returns the content of a JSON file; None where there is no such file.

  `fields` are its object's, or the type of its value, dict or list.

  Raises:
    errors.UserError: the file is damaged or holds something else.
  """
  content = read_bytes(path)
  if content is None:
    return None
  with judging(path):
    content = _parse(content)
    if isinstance(fields, Fields):
      validate(content, fields)
    elif fields is not None:
      _validate_value('the content', content, fields)
    return content


def read_rows(path: epath.Path, fields: Fields) -> list[dict[str, Any]]:
  """Returns the rows of a .jsonl file by their steps; [] without the file.

  Leaves out a last line without an end, which a crash cut off.

  Raises:
    errors.UserError: a line is damaged or isn't such a row.
  """
  fields = fields._replace(required={'step': int, **fields.required})
  rows = []
  for number, text in _complete_lines(path):
    with judging(path, f'line {number}'):
      rows.append(_parse(text))
      validate(rows[-1], fields)
  return sorted(rows, key=lambda row: row['step'])


def read_table(path: epath.Path) -> dict[str, Float[np.ndarray, 'rows']]:
  """Returns the columns of a .csv file, rows by their steps; {} without rows.

  The first column is `step`. Leaves out a last line that a crash cut off.

  Raises:
    errors.UserError: the header or a row is damaged.
  """
  lines = list(_complete_lines(path))
  if len(lines) < 2:
    return {}
  with judging(path, 'line 1'):
    header = lines[0][1].decode().split(',')
    if header[0] != 'step' or len(set(header)) < len(header):
      raise ValueError("expected the names of columns, 'step' first")
  rows = []
  for number, text in lines[1:]:
    with judging(path, f'line {number}'):
      cells = text.decode().split(',')
      if len(cells) != len(header):
        raise ValueError(f'{len(cells)} fields, expected {len(header)}')
      rows.append([float(cell) for cell in cells])
      if not (0 <= rows[-1][0] <= _LARGEST and rows[-1][0].is_integer()):
        raise ValueError(f'step {cells[0]}, expected {_WORDS[int]}')
  table = np.array(rows)
  table = table[np.argsort(table[:, 0], kind='stable')]
  return dict(zip(header, table.T, strict=True))


def read_arrays(
  path: epath.Path, shapes: Mapping[str, tuple[str, str]]
) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz file; {} where there is no such file.

  Its texts are fit to be printed.

  Args:
    path: of the file.
    shapes: name -> (kind, axes): kinds are those of numpy's dtypes, such as
      'iu'; axes that share a letter have one length, a digit is a length.

  Raises:
    errors.UserError: the file is damaged, or an array is not as in `shapes`.
  """
  content = read_bytes(path)
  if content is None:
    return {}
  with judging(path):
    arrays = _parse_npz(content, _ARRAY_BYTES)
  arrays = {name: array for name, array in arrays.items() if name in shapes}
  sizes: dict[str, int] = {}
  for name, array in sorted(arrays.items()):
    kinds, axes = shapes[name]
    with judging(path, f'array {name!r}'):
      if array.dtype.kind not in kinds:
        raise ValueError(f'of type {array.dtype}, expected a kind of {kinds!r}')
      wanted = [
        int(axis) if axis.isdigit() else sizes.setdefault(axis, length)
        for axis, length in zip(axes.split(), array.shape, strict=False)
      ]
      if list(array.shape) != wanted or array.ndim != len(axes.split()):
        raise ValueError(f'of shape {array.shape}, expected {axes!r}')
    if array.dtype.kind == 'U':
      arrays[name] = np.array([*map(errors.printable, array)], 'U')
  return arrays


def read_npz(
  path: epath.PathLike, max_bytes: float = math.inf
) -> dict[str, np.ndarray]:
  """Returns the arrays of an `.npz` file that anyone may have written.

  Raises:
    errors.UserError: no zip archive, damaged or encrypted, arrays of more than
      `max_bytes` together, or of objects, which only unpickling would read.
  """
  path = epath.Path(path)
  try:
    return _parse_npz(path.read_bytes(), max_bytes)
  except _FAULTS as error:
    raise errors.UserError(
      f'{path} is damaged, or no .npz file of arrays: '
      f'{str(error) or type(error).__name__}'
    ) from error


def step_of(text: str) -> int:
  """Returns the step of a line of a .jsonl or a .csv file.

  Raises:
    ValueError: the line is damaged.
  """
  if not text.startswith('{'):
    return int(text.partition(',')[0])
  row = _parse(text.encode())
  validate(row, Fields({'step': int}))
  return row['step']


def validate(content: Any, fields: Fields) -> None:
  """Raises ValueError where an object isn't as `fields` say."""
  if not isinstance(content, dict):
    raise ValueError(f'{_brief(content)}, expected an object')
  for key, kind in fields.required.items():
    if key not in content:
      raise ValueError(f'{key!r} is missing')
    _validate_value(key, content[key], kind)
  for key, value in content.items():
    kind = fields.optional.get(key, fields.others)
    if key not in fields.required and kind and value is not None:
      _validate_value(key, value, kind)


@contextlib.contextmanager
def judging(path: epath.Path, place: str = '') -> Iterator[None]:
  """Turns what goes wrong in a file into a UserError that names it."""
  try:
    yield
  except errors.UserError:
    raise
  except OSError as error:
    raise errors.UserError(
      f'{path} could not be read: {error.strerror or error}.'
    ) from None
  except _FAULTS as error:
    reason = str(error).partition('\n')[0] or type(error).__name__
    where = f'{place}: ' if place else ''
    raise errors.UserError(
      f'{path} is damaged ({where}{reason}): mend it, put a backup in its'
      ' place, or leave its run out.'
    ) from None


def _validate_value(key: str, value: Any, kind: type) -> None:
  fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
  if kind is float:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    fits = fits and (isinstance(value, float) or abs(value) <= _LARGEST)
  elif kind is int:
    fits = fits and 0 <= value <= _LARGEST
  elif kind is list:
    fits = fits and all(isinstance(part, str) for part in value)
  if not fits:
    raise ValueError(f'{key!r} is {_brief(value)}, expected {_WORDS[kind]}')


def _brief(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f'{text[:40]}...'


def _parse(content: bytes) -> Any:
  numbers = {name: float(name) for name in ('nan', 'inf', '-inf')}

  def restore(row):
    return {
      k: numbers.get(v, v) if isinstance(v, str) else v for k, v in row.items()
    }

  return json.loads(content.decode(), object_hook=restore)


def _parse_npz(data: bytes, max_bytes: float) -> dict[str, np.ndarray]:
  """Returns a file's arrays, none of them pickled; raises one of _FAULTS."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = [m for m in archive.infolist() if m.filename.endswith('.npy')]
    size = sum(member.file_size for member in members)
    if size > max_bytes:
      raise ValueError(f'it holds {size:,} bytes, {max_bytes:,} were expected')
    return {
      member.filename.removesuffix('.npy'): np.lib.format.read_array(
        io.BytesIO(archive.read(member))
      )
      for member in members
    }


def _complete_lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
  """Yields numbers and lines; the last must end, or else it was cut off."""
  content = read_bytes(path) or b''
  for number, text in enumerate(content.split(b'\n')[:-1], 1):
    if text.strip():
      yield number, text
