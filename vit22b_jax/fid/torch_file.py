"""Reads PyTorch's weight files without PyTorch, and runs none of their code.

    arrays = torch_file.read('pt_inception-2015-12-05-6726825d.pth')

Both formats of `torch.save`: the zip archive (1.6 and later) and the legacy
stream of pickles before it. A pickle can call any function by its name; the
unpickler here knows tensors, parameters, storages and OrderedDict, and refuses
every other name. The formats are those of torch/serialization.py.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from vit22b_jax import errors

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ZIP_START = b'PK'

_DTYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': jnp.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}


def read(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors of a file that holds a (flat) dict of them.

  Args:
    path: what `torch.save(model.state_dict(), path)` wrote.

  Raises:
    UserError: no such file, damaged, or something else than tensors in a dict.
  """
  path = epath.Path(path)
  if not path.is_file():
    raise errors.UserError(f'There is no file of weights at {path}.')
  data = path.read_bytes()
  load = _load_zip if data.startswith(_ZIP_START) else _load_legacy
  try:
    found = load(data)
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from None
  except Exception as error:  # A damaged pickle fails in any way.
    raise errors.UserError(
      f'{path} is damaged, or no file of torch.save: {error!r}.'
    ) from error
  if not isinstance(found, dict) or not all(
    isinstance(name, str) and isinstance(value, np.ndarray)
    for name, value in found.items()
  ):
    raise errors.UserError(
      f'{path} holds something else than a state_dict, a dict of tensors: save '
      'model.state_dict().'
    )
  return dict(found)


class _Storage:
  """Holds memory that tensors share: little-endian, as this host is."""

  def __init__(self, dtype: Any, size: int):
    self.dtype = np.dtype(dtype)
    self.size = size
    self.values: np.ndarray | None = None

  def require(self, num_bytes: int) -> None:
    """Raises UserError for another size than the tensors were promised."""
    if num_bytes != self.size * self.dtype.itemsize:
      raise errors.UserError(
        f'a storage has {num_bytes} bytes in place of '
        f'{self.size * self.dtype.itemsize}: the file is damaged.'
      )

  def fill(self, data: bytes) -> None:
    """Takes the numbers."""
    self.require(len(data))
    self.values = np.frombuffer(data, self.dtype)


class _Tensor:
  """Views a storage, which may be filled later."""

  def __init__(
    self,
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
  ):
    self._storage = storage
    self._view = offset, shape, strides

  def array(self) -> np.ndarray:
    """Returns a copy; numpy refuses views that reach beyond their buffer."""
    offset, shape, strides = self._view
    if math.prod(shape) > self._storage.size:
      raise errors.UserError(
        f'a tensor of shape {list(shape)} has only {self._storage.size} '
        'numbers: the file is damaged.'
      )
    size = self._storage.dtype.itemsize
    return np.ndarray(
      shape,
      self._storage.dtype,
      buffer=self._storage.values,
      offset=offset * size,
      strides=tuple(s * size for s in strides),
    ).copy()


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
  """Stands for `torch._utils._rebuild_tensor_v2`, less gradients and hooks."""
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_) -> _Tensor:
  return tensor


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
  """Unpickles tensors, and refuses the name of anything else.

  Args:
    file: the pickle.
    storage: makes or finds the storage of (dtype, key, size).
  """

  def __init__(
    self, file: io.BytesIO, storage: Callable[[Any, str, int], _Storage]
  ):
    super().__init__(file, encoding='utf-8')
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in _FUNCTIONS:
      return _FUNCTIONS[module, name]
    if module == 'torch' and name in _DTYPES:
      return _DTYPES[name]
    raise errors.UserError(
      f'the file asks for {module}.{name}, and only tensors are read from '
      'PyTorch files, since anything else could run code.'
    )

  def persistent_load(self, reference: tuple) -> _Storage:
    kind, dtype, key, _, size, *view = reference
    if kind != 'storage' or (view and view[0] is not None):
      raise errors.UserError(f'unknown storage {reference!r}.')
    return self._storage(dtype, key, size)


def _arrays(value: Any) -> Any:
  """Turns a dict's tensors into arrays; `read` judges what else there is."""
  if not isinstance(value, dict):
    return value
  return {
    k: v.array() if isinstance(v, _Tensor) else v for k, v in value.items()
  }


def _load_zip(data: bytes) -> Any:
  """Loads ROOT/data.pkl, and ROOT/data/KEY for each storage."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = set(archive.namelist())
    (pickled,) = (n for n in names if n.endswith('/data.pkl'))
    root = pickled.removesuffix('data.pkl')
    order = f'{root}byteorder'
    if order in names and archive.read(order) != b'little':
      raise errors.UserError('its numbers are big-endian, which is not read.')
    storages = {}

    def storage(dtype: Any, key: str, size: int) -> _Storage:
      if key not in storages:
        storages[key] = _Storage(dtype, size)
        member = archive.getinfo(f'{root}data/{key}')
        storages[key].require(member.file_size)
        storages[key].fill(archive.read(member))
      return storages[key]

    return _arrays(
      _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()
    )


def _load_legacy(data: bytes) -> Any:
  """Loads pickles of magic, protocol, machine, object, keys; then storages."""
  file = io.BytesIO(data)
  storages: dict[str, _Storage] = {}

  def storage(dtype: Any, key: str, size: int) -> _Storage:
    return storages.setdefault(key, _Storage(dtype, size))

  def load() -> Any:
    return _Unpickler(file, storage).load()

  if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
    raise errors.UserError('it is of no format that torch.save writes.')
  if not load()['little_endian']:
    raise errors.UserError('its numbers are big-endian, which is not read.')
  found = load()
  for key in load():
    size = int.from_bytes(file.read(8), 'little')
    if size != storages[key].size:
      raise errors.UserError(
        f'storage {key} has another size than its tensors.'
      )
    storages[key].fill(file.read(size * storages[key].dtype.itemsize))
  return _arrays(found)
