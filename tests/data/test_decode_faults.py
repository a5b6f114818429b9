"""Images as cameras, phones and damaged disks leave them: size and pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from vit22b_jax.data import decode

UPRIGHT = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
RUBBISH = b'Exif\0\0\0\x08\0\x02\x01\x12\0\x03rubbish'
# How a camera that was held so stores the upright image.
STORED = {
  1: UPRIGHT,
  2: UPRIGHT[:, ::-1],
  3: UPRIGHT[::-1, ::-1],
  4: UPRIGHT[::-1],
  5: UPRIGHT.transpose(1, 0, 2),
  6: UPRIGHT.transpose(1, 0, 2)[::-1],
  7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
  8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}
OPTIONS = {
  'PNG': {},
  'TIFF': {},
  'WEBP': {'lossless': True},
  'JPEG': {'quality': 100, 'subsampling': 0},
}


def encode(pixels, kind, orientation=None, **options):
  file = io.BytesIO()
  if orientation is not None:
    options['exif'] = Image.Exif()
    options['exif'][0x0112] = orientation
  image = Image.fromarray(np.ascontiguousarray(pixels))
  image.save(file, kind, **OPTIONS[kind], **options)
  return file.getvalue()


def assert_is(data, pixels, kind):
  """Compares size and pixels, near ones for JPEG."""
  found = decode.resized(data)
  assert found.shape == pixels.shape
  assert decode.size(data) == pixels.shape[:2]
  tolerance = 12 if kind == 'JPEG' else 0
  np.testing.assert_allclose(found.astype(int), pixels, atol=tolerance)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', OPTIONS)
def test_every_orientation_is_turned_and_measured_alike(kind, orientation):
  assert_is(encode(STORED[orientation], kind, orientation), UPRIGHT, kind)


@pytest.mark.parametrize('orientation', [0, 9, 255])
@pytest.mark.parametrize('kind', OPTIONS)
def test_an_invalid_orientation_changes_nothing(kind, orientation):
  assert_is(encode(UPRIGHT, kind, orientation), UPRIGHT, kind)


@pytest.mark.parametrize('kind', OPTIONS)
def test_resizing_asks_for_the_upright_size(kind):
  data, seen = encode(STORED[6], kind, 6), []

  def target(size):
    seen.append(size)
    return size[0] * 2, size[1]

  assert decode.resized(data, target).shape == (10, 9, 3)
  assert seen == [(5, 9)]


@pytest.mark.parametrize('exif', [RUBBISH, b'Exif\0\0', b'\xff' * 40])
@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'JPEG'])
def test_damaged_metadata_are_not_damaged_pixels(kind, exif):
  data = encode(UPRIGHT, kind, exif=exif)
  assert_is(data, UPRIGHT, kind)
  assert decode.square(data, 4).shape == (4, 4, 3)


def test_an_orientation_in_a_tiff_s_xmp_counts_too():
  xmp = b'<x tiff:Orientation="6"/>'
  info = {700: xmp}
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(STORED[6])).save(
    file, 'TIFF', tiffinfo=info
  )
  assert_is(file.getvalue(), UPRIGHT, 'TIFF')


def test_formats_without_a_decoder_of_pillow_s_own_are_left_out():
  Image.init()
  left_out = set(Image.OPEN) - set(decode.formats())
  assert left_out == {
    *('BUFR', 'EPS', 'GRIB', 'HDF5', 'IPTC', 'MCIDAS', 'MPEG', 'WMF'),
  }
  assert not {'.eps', '.ps', '.h5', '.mpg', '.wmf'} & decode.suffixes()
  assert {'.jpg', '.jpeg', '.png', '.webp', '.tif', '.bmp'} <= decode.suffixes()


def test_an_eps_under_another_name_starts_no_ghostscript(monkeypatch):
  def start(*_, **__):
    raise AssertionError('started a program')

  monkeypatch.setattr('subprocess.Popen', start)
  file = io.BytesIO()
  Image.new('RGB', (9, 5)).save(file, 'EPS')
  with pytest.raises(decode.CorruptImage, match='not decoded'):
    decode.resized(file.getvalue())


@pytest.mark.parametrize('magic', [b'\x89HDF\r\n\x1a\n', b'BUFR', b'GRIB'])
def test_stub_formats_are_no_images(magic):
  with pytest.raises(decode.CorruptImage, match='not decoded'):
    decode.size(magic + bytes(200))


def encode_wide(values, dtype):
  file = io.BytesIO()
  Image.fromarray(np.array([values], dtype)).save(file, 'TIFF')
  return file.getvalue()


@pytest.mark.parametrize(
  ('dtype', 'values', 'expected'),
  [
    ('float32', [0, 0.2, 0.6, 1.0001], [0, 51, 153, 255]),
    ('float32', [-0.01, 0.2, 0.6, 1.1], [0, 51, 153, 255]),
    ('float32', [0, 0.6, 1.2, 255.4], [0, 1, 1, 255]),
    ('int32', [0, 257, 32768, 65535], [0, 1, 128, 255]),
    ('int32', [0, 0, 0, 0], [0, 0, 0, 0]),
  ],
)
def test_values_of_32_bits_show_their_range(dtype, values, expected):
  found = decode.resized(encode_wide(values, dtype))
  assert found[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
  ('dtype', 'values', 'message'),
  [
    ('float32', [0, np.nan], r'^float32 .*\[nan, nan\]: expected \[0, 1\] or'),
    ('float32', [0, np.inf], r'\[0, inf\]: expected \[0, 1\] or \[0, 255\]'),
    ('float32', [-0.5, 1], r'\[-0.5, 1\]: expected'),
    ('float32', [0, 65535], r'\[0, 65535\]: expected \[0, 1\] or'),
    ('int32', [0, 255], r'^int32 .*\[0, 255\]: of 8 or 16 bits\? Save it as'),
    ('int32', [-1, 300], r'\[-1, 300\]: expected \[0, 65535\]; save it as'),
    ('int32', [0, 65536], r'\[0, 65536\]: expected'),
  ],
)
def test_values_of_an_unknown_range_are_corrupt(dtype, values, message):
  with pytest.raises(decode.CorruptImage, match=message):
    decode.resized(encode_wide(values, dtype))


def test_a_dark_pgm_of_16_bits_stays_dark():
  data = b'P5 2 1 65535\n' + np.array([0, 200], '>u2').tobytes()
  assert decode.resized(data)[0, :, 0].tolist() == [0, 1]


def test_a_suffix_is_not_a_type():
  file = io.BytesIO()
  Image.fromarray(UPRIGHT).save(file, 'PNG')  # Named .jpg or what you like.
  np.testing.assert_array_equal(decode.resized(file.getvalue()), UPRIGHT)
