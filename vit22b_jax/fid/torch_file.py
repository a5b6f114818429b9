"""Reads PyTorch's weight files without PyTorch, and runs none of their code.

    arrays = torch_file.read('pt_inception-2015-12-05-6726825d.pth')

Both formats of `torch.save`: the zip archive (1.6 and later) and the legacy
stream of pickles before it, in which Inception's public weights are. A pickle
can call any function by its name; the unpickler here knows tensors, parameters,
storages and OrderedDict, and refuses every other name. The formats are those of
torch/serialization.py.
"""

import collections
import dataclasses
import io
import math
import pickle
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from vit22b_jax import errors

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
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
  """Returns the tensors that `torch.save(model.state_dict(), path)` wrote.

  Raises:
    UserError: damaged, or something else than tensors in a dict.
  """
  data = epath.Path(path).read_bytes()
  load = _load_zip if data.startswith(b'PK') else _load_legacy
  try:
    found = load(data)
    if not isinstance(found, dict) or not all(
      isinstance(value, _Tensor) for value in found.values()
    ):
      raise errors.UserError(
        'it holds something else than a state_dict, a dict of tensors: save '
        'model.state_dict().'
      )
    return {name: tensor.array() for name, tensor in found.items()}
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from None
  except Exception as error:  # A damaged pickle fails in any way.
    raise errors.UserError(
      f'{path} is damaged, or no file of torch.save: {error!r}.'
    ) from error


@dataclasses.dataclass
class _Storage:
  """Memory that tensors share, filled later; little-endian, as this host is."""

  dtype: np.dtype
  data: bytes = b''


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides count numbers."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self) -> np.ndarray:
    """Returns a copy; numpy refuses views that reach beyond their buffer."""
    dtype, data = self.storage.dtype, self.storage.data
    count = len(data) // dtype.itemsize
    if math.prod(self.shape) > count:  # strides of 0 could ask for any size
      raise errors.UserError(
        f'a tensor of shape {list(self.shape)} has only {count} numbers: the '
        'file is damaged.'
      )
    strides = tuple(s * dtype.itemsize for s in self.strides)
    start = self.offset * dtype.itemsize
    return np.ndarray(self.shape, dtype, data, start, strides).copy()


_FUNCTIONS = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch._utils', '_rebuild_tensor_v2'): lambda *args: _Tensor(*args[:4]),
  ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
}


class _Unpickler(pickle.Unpickler):
  """Unpickles tensors into `storages` by key, and refuses any other name."""

  def __init__(self, data: io.BytesIO, storages: dict[str, _Storage]):
    super().__init__(data, encoding='utf-8')
    self._storages = storages

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in _FUNCTIONS:
      return _FUNCTIONS[module, name]
    if module == 'torch' and name in _DTYPES:
      return np.dtype(_DTYPES[name])
    raise errors.UserError(
      f'the file asks for {module}.{name}, and only tensors are read from '
      'PyTorch files, since anything else could run code.'
    )

  def persistent_load(self, reference: tuple) -> _Storage:
    kind, dtype, key, _, _, *view = reference
    if kind != 'storage' or any(view):
      raise errors.UserError(f'unknown storage {reference!r}.')
    return self._storages.setdefault(key, _Storage(dtype))


def _load_zip(data: bytes) -> Any:
  """Loads ROOT/data.pkl, and ROOT/data/KEY for each storage."""
  storages = {}
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    (pickled,) = (n for n in archive.namelist() if n.endswith('/data.pkl'))
    found = _Unpickler(io.BytesIO(archive.read(pickled)), storages).load()
    for key, storage in storages.items():
      storage.data = archive.read(f'{pickled.removesuffix(".pkl")}/{key}')
  return found


def _load_legacy(data: bytes) -> Any:
  """Loads pickles of magic, protocol, machine, object, keys; then storages."""
  file, storages = io.BytesIO(data), {}
  magic, protocol, machine, found, keys = (
    _Unpickler(file, storages).load() for _ in range(5)
  )
  if (magic, protocol) != (_LEGACY_MAGIC, 1001) or not machine['little_endian']:
    raise errors.UserError('it is of no format that is read.')
  for key in keys:
    size = int.from_bytes(file.read(8), 'little')
    storages[key].data = file.read(size * storages[key].dtype.itemsize)
  return found
