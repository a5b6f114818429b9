"""`.npz` files of strangers: read as they are, or one clear error."""

import io
import re
import struct
import zipfile

import numpy as np
import pytest

from vit22b_jax import errors
from vit22b_jax.runtime import formats

ARRAYS = {
  'matrix': np.arange(12.0).reshape(3, 4),
  'fortran': np.asfortranarray(np.arange(6).reshape(2, 3)),
  'scalar': np.array(7, np.uint8),
  'empty': np.zeros((0, 3), np.float32),
  'text': np.array('abc'),
}


def header(shape, dtype='<f8'):
  """A `.npy` file's header alone."""
  out = io.BytesIO()
  content = {'descr': dtype, 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(out, content)
  return out.getvalue()


def archive(**members):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as file:
    for name, content in members.items():
      file.writestr(f'{name}.npy', content)
  return out.getvalue()


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(save, tmp_path):
  path = tmp_path / 'x.npz'
  save(path, **ARRAYS)
  found = formats.read_npz(path)
  assert list(found) == list(ARRAYS)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype


def flip(data, offset):
  damaged = bytearray(data)
  damaged[offset] ^= 1
  return bytes(damaged)


def with_zip_fields(method=None, flags=None):
  """An archive whose members claim a compression method or flags."""
  data = bytearray(archive(x=header((1,)) + bytes(8)))
  for signature, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
    start = data.index(signature)
    if flags is not None:
      struct.pack_into('<H', data, start + offset, flags)
    if method is not None:
      struct.pack_into('<H', data, start + offset + 2, method)
  return bytes(data)


WHOLE = archive(x=header((2,)) + np.arange(2.0).tobytes())


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'not a zip file'),
    (b'weights', 'not a zip file'),
    (WHOLE[:-30], 'not a zip file'),
    (flip(WHOLE, WHOLE.index(b'NUMPY') + 130), 'CRC'),
    (with_zip_fields(flags=1), 'encrypted'),
    (with_zip_fields(method=97), 'compression method'),
    (archive(x=header((10**15,)) + bytes(8)), r'shape \(1000000000000000,\)'),
    (archive(x=header((-1, -1)) + bytes(8)), 'unknown dimension'),
    (archive(x=header((0, 10**30))), 'too large|too big|dimension|C long'),
    (archive(x=header((2,)) + bytes(7)), 'got 7'),
    (archive(x=header((1,), '|O') + bytes(8)), 'Object arrays'),
    (archive(x=b'\x93NUMPY\x09\x00'), r'not \(9, 0\)'),
    (archive(x=b'nothing'), 'magic'),
  ],
)
def test_damage_is_one_clear_error(content, message, tmp_path):
  path = tmp_path / 'x.npz'
  path.write_bytes(content)
  expected = f'{re.escape(str(path))} is damaged, or no .npz file.*({message})'
  with pytest.raises(errors.UserError, match=expected):
    formats.read_npz(path)


def test_more_bytes_than_expected(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez_compressed(path, x=np.zeros(10**6))
  assert formats.read_npz(path)['x'].shape == (10**6,)
  with pytest.raises(errors.UserError, match=r'8,000,128 bytes, 1,000 were'):
    formats.read_npz(path, 1000)


def test_missing_files_and_folders(tmp_path):
  for path in (tmp_path, tmp_path / 'x.npz'):
    with pytest.raises(errors.UserError, match=str(path)):
      formats.read_npz(path)


def test_any_damage_ends_in_a_user_error_or_arrays(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'x.npz'
  np.savez_compressed(path, **ARRAYS)
  whole = path.read_bytes()
  failed = 0
  for _ in range(300):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), rng.integers(1, 4)):
      data[place] = rng.integers(256)
    path.write_bytes(bytes(data[: rng.integers(1, 2 * len(data))]))
    try:
      formats.read_npz(path)
    except errors.UserError:
      failed += 1
  assert failed > 200
