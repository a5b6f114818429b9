"""Tests of decoding on the host and augmentation on the device."""

import io

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from vit22b_jax.data import augment, decode, randaugment


def _encode(image, kind='PNG', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def _random(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# Decoding.


def test_rgb_of_the_right_size_keeps_every_pixel():
  pixels = _random((7, 7, 3))
  decoded = decode.square(_encode(Image.fromarray(pixels)), 7)
  np.testing.assert_array_equal(decoded, pixels)
  assert decoded.dtype == np.uint8


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'GIF', 'JPEG', 'WEBP'])
def test_formats(kind):
  flat = Image.new('RGB', (9, 9), (200, 100, 50))
  decoded = decode.square(_encode(flat, kind), 5)
  assert decoded.shape == (5, 5, 3)
  np.testing.assert_allclose(decoded[2, 2], (200, 100, 50), atol=4)


def test_grayscale_is_repeated():
  pixels = _random((5, 5))
  decoded = decode.square(_encode(Image.fromarray(pixels)), 5)
  for channel in range(3):
    np.testing.assert_array_equal(decoded[..., channel], pixels)


def test_bilevel_is_black_and_white():
  image = Image.fromarray(np.eye(5, dtype=bool))
  decoded = decode.square(_encode(image), 5)
  np.testing.assert_array_equal(decoded[..., 0], np.eye(5) * 255)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_sixteen_bits_are_scaled_not_clipped(kind):
  values = np.array([[0, 257], [256 * 128, 65535]], np.uint16)
  decoded = decode.square(_encode(Image.fromarray(values), kind), 2)
  np.testing.assert_array_equal(decoded[..., 1], [[0, 1], [128, 255]])


@pytest.mark.parametrize('largest', [1.0, 255.0])
def test_floats_are_of_one_or_of_255(largest):
  values = np.array([[0, 0.2], [0.6, 1]], np.float32) * largest
  decoded = decode.square(_encode(Image.fromarray(values), 'TIFF'), 2)
  np.testing.assert_array_equal(decoded[..., 0], [[0, 51], [153, 255]])


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_transparency_lies_over_white(mode):
  image = Image.new(mode, (2, 1), (0,) * (len(mode) - 1) + (255,))
  image.putpixel((1, 0), (0,) * (len(mode) - 1) + (0,))
  rgb = np.asarray(decode.to_rgb(image))
  np.testing.assert_array_equal(rgb, [[[0, 0, 0], [255, 255, 255]]])


def test_half_transparent_is_half_white():
  image = Image.new('RGBA', (3, 3), (255, 0, 0, 128))
  decoded = decode.square(_encode(image), 3)
  np.testing.assert_allclose(decoded[1, 1], (255, 127, 127), atol=1)


def test_palette_and_its_transparency():
  image = Image.new('P', (2, 2))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putpixel((1, 1), 1)
  decoded = decode.square(_encode(image), 2)
  np.testing.assert_array_equal(decoded[0, 0], (10, 20, 30))
  np.testing.assert_array_equal(decoded[1, 1], (40, 50, 60))
  decoded = decode.square(_encode(image, transparency=1), 2)
  np.testing.assert_array_equal(decoded[1, 1], (255, 255, 255))


def test_cmyk():
  image = Image.new('CMYK', (4, 4), (0, 255, 255, 0))
  decoded = decode.square(_encode(image, 'JPEG', quality=95), 4)
  np.testing.assert_allclose(decoded[1, 1], (255, 0, 0), atol=6)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_undone(orientation):
  upright = Image.fromarray(_random((6, 6, 3), seed=1))
  # How a camera stores the upright image under each orientation.
  stored = {
    1: upright,
    2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: upright.transpose(Image.Transpose.ROTATE_180),
    4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: upright.transpose(Image.Transpose.TRANSPOSE),
    6: upright.transpose(Image.Transpose.ROTATE_90),
    7: upright.transpose(Image.Transpose.TRANSVERSE),
    8: upright.transpose(Image.Transpose.ROTATE_270),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  decoded = decode.square(_encode(stored, exif=exif), 6)
  np.testing.assert_array_equal(decoded, np.asarray(upright))


@pytest.mark.parametrize('size', [(10, 4), (4, 10)])
def test_the_central_square_is_kept(size):
  width, height = size
  pixels = np.zeros((height, width, 3), np.uint8)
  top, left = (height - 4) // 2, (width - 4) // 2
  pixels[top : top + 4, left : left + 4] = _random((4, 4, 3))
  decoded = decode.square(_encode(Image.fromarray(pixels)), 4)
  np.testing.assert_array_equal(decoded, pixels[top : top + 4, left : left + 4])


def test_shrinking_is_antialiased():
  board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
  decoded = decode.square(_encode(Image.fromarray(board)), 8)
  # Without a filter it would be all black or white.
  assert 120 < decoded[2:-2, 2:-2].mean() < 135
  assert decoded[2:-2, 2:-2].std() < 3


def test_large_jpegs_keep_their_size_and_colors():
  photo = Image.new('RGB', (640, 480), (30, 60, 90))
  photo.paste((200, 180, 160), (320, 0, 640, 480))
  decoded = decode.square(_encode(photo, 'JPEG', quality=95), 16)
  assert decoded.shape == (16, 16, 3)
  np.testing.assert_allclose(decoded[8, 2], (30, 60, 90), atol=3)
  np.testing.assert_allclose(decoded[8, 13], (200, 180, 160), atol=3)


@pytest.mark.parametrize(
  'data',
  [b'', b'not an image', _encode(Image.new('RGB', (64, 64)))[:60]],
  ids=['empty', 'text', 'truncated'],
)
def test_corrupt_bytes(data):
  with pytest.raises(decode.CorruptImage):
    decode.square(data, 8)


def test_a_truncated_jpeg_is_corrupt_not_gray():
  data = _encode(Image.fromarray(_random((64, 64, 3))), 'JPEG')
  with pytest.raises(decode.CorruptImage):
    decode.square(data[: len(data) // 2], 8)


# Augmentation.


@pytest.fixture(scope='module')
def batch():
  return jnp.asarray(_random((11, 16, 16, 3)))


@pytest.fixture(scope='module')
def augment_batch():
  def apply(key, images, preset):
    data = {'augment': preset, 'image_size': images.shape[1]}
    return augment.apply(key, images, augment.recipe(data))

  return jax.jit(apply, static_argnames='preset')


@pytest.mark.parametrize('preset', augment.PRESETS)
def test_presets_keep_shape_and_type_and_follow_the_key(
  preset, batch, augment_batch
):
  first = augment_batch(jax.random.key(1), batch, preset=preset)
  assert first.shape == batch.shape
  assert first.dtype == jnp.uint8
  again = augment_batch(jax.random.key(1), batch, preset=preset)
  np.testing.assert_array_equal(first, again)
  other = augment_batch(jax.random.key(2), batch, preset=preset)
  assert preset == 'none' or not np.array_equal(first, other)


@pytest.mark.parametrize('preset', augment.PRESETS)
def test_augmentation_does_not_depend_on_the_devices(preset, augment_batch):
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  images = jnp.asarray(_random((16, 12, 12, 3)))
  one = augment_batch(jax.random.key(3), images, preset=preset)
  placed = jax.device_put(images, sharding)
  eight = augment_batch(jax.random.key(3), placed, preset=preset)
  np.testing.assert_array_equal(one, eight)


def test_images_of_a_batch_are_augmented_apart(augment_batch):
  same = jnp.tile(jnp.asarray(_random((1, 16, 16, 3))), (64, 1, 1, 1))
  augmented = np.asarray(
    augment_batch(jax.random.key(0), same, preset='standard')
  )
  # 64 draws of 25 shifts x 2 flips.
  assert len(np.unique(augmented.reshape(64, -1), axis=0)) > 25


def test_paper_flips_each_axis_in_a_third_of_the_images(augment_batch):
  image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
  images = jnp.tile(jnp.asarray(image), (4000, 1, 1, 1))
  corner = np.asarray(augment_batch(jax.random.key(0), images, preset='paper'))
  share = np.bincount(corner[:, 0, 0, 0], minlength=4) / 4000
  horizontal, vertical = share[1] + share[3], share[2] + share[3]
  np.testing.assert_allclose((horizontal, vertical), 0.33, atol=0.03)
  np.testing.assert_allclose(share[3], 0.33**2, atol=0.02)


def test_crop_shifts_alike_in_both_directions(augment_batch):
  size, pad = 8, 1
  image = np.zeros((1, size, size, 1), np.uint8)
  image[0, 3, 5] = 255
  images = jnp.tile(jnp.asarray(image), (900, 1, 1, 1))
  out = np.asarray(augment_batch(jax.random.key(0), images, preset='crop'))
  shifts = np.stack(np.nonzero(out[..., 0])[1:], 1) - (3, 5)
  found, counts = np.unique(shifts, axis=0, return_counts=True)
  assert found.tolist() == [[y, x] for y in (-pad, 0, pad) for x in (-1, 0, 1)]
  np.testing.assert_allclose(counts, 100, atol=40)


def test_standard_shifts_by_an_eighth_at_most_and_flips_half(augment_batch):
  size, pad = 16, 2
  image = np.zeros((1, size, size, 1), np.uint8)
  image[0, 8, 6] = 255
  images = jnp.tile(jnp.asarray(image), (4000, 1, 1, 1))
  out = np.asarray(augment_batch(jax.random.key(0), images, preset='standard'))
  rows, columns = np.nonzero(out[..., 0])[1:]
  np.testing.assert_array_equal(
    np.unique(rows), np.arange(8 - pad, 8 + pad + 1)
  )
  # Unflipped around 6, flipped around 9: they meet between 7 and 8.
  assert (columns.min(), columns.max()) == (6 - pad, 9 + pad)
  np.testing.assert_allclose((columns <= 6).mean(), 0.3, atol=0.03)


def test_normalize():
  images = jnp.asarray([0, 51, 255], jnp.uint8).reshape(1, 1, 1, 3)
  out = augment.normalize(images, (0.5, 0.1, 0.25), (0.5, 0.1, 0.125))
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out[0, 0, 0], (-1, 1, 6), rtol=1e-6)


# RandAugment against Pillow.


@pytest.fixture(scope='module')
def operate():
  operation = jax.jit(randaugment.operate)

  def call(name, level, image):
    index = randaugment.OPERATIONS.index(name)
    return np.asarray(operation(index, jnp.float32(level), image))

  return call


_PILLOW = {
  'brightness': lambda im, v: ImageEnhance.Brightness(im).enhance(1 + 0.9 * v),
  'contrast': lambda im, v: ImageEnhance.Contrast(im).enhance(1 + 0.9 * v),
  'color': lambda im, v: ImageEnhance.Color(im).enhance(1 + 0.9 * v),
  'sharpness': lambda im, v: ImageEnhance.Sharpness(im).enhance(1 + 0.9 * v),
  'autocontrast': lambda im, v: ImageOps.autocontrast(im),
  'equalize': lambda im, v: ImageOps.equalize(im),
  'posterize': lambda im, v: ImageOps.posterize(im, 8 - round(4 * abs(v))),
  'solarize': lambda im, v: ImageOps.solarize(im, 256 * (1 - abs(v))),
  'identity': lambda im, v: im,
  'shear_x': lambda im, v: _affine(im, (1, 0.3 * v, 0, 1)),
  'shear_y': lambda im, v: _affine(im, (1, 0, 0.3 * v, 1)),
}


def _affine(image, matrix):
  """Pillow's nearest affine map about the center, gray outside."""
  a, b, c, d = matrix
  x, y = image.width / 2, image.height / 2
  offsets = (x - a * x - b * y, y - c * x - d * y)
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    (a, b, offsets[0], c, d, offsets[1]),
    fillcolor=(128, 128, 128),
  )


@pytest.mark.parametrize('level', [0.9, -0.5])
@pytest.mark.parametrize('name', sorted(_PILLOW))
def test_operations_are_pillows(name, level, operate):
  # A narrow range, so that autocontrast and equalize have work to do.
  pixels = (_random((19, 16, 3)) // 2 + 40).astype(np.uint8)
  expected = np.asarray(_PILLOW[name](Image.fromarray(pixels), level))
  ours = operate(name, level, jnp.asarray(pixels))
  difference = np.abs(ours.astype(int) - expected)
  if 'shear' in name:  # Ties between two source pixels may fall either way.
    assert (difference > 0).mean() < 0.03
  else:
    assert difference.max() <= (1 if name in _BLENDS else 0)


_BLENDS = ('brightness', 'contrast', 'color', 'sharpness')


def test_every_operation_of_randaugment_is_compared_or_geometric():
  geometric = {'rotate', 'translate_x', 'translate_y'}
  assert set(_PILLOW) | geometric == set(randaugment.OPERATIONS)


def test_rotation_of_a_degree_known_by_hand(operate):
  # 30 degrees times 1: a bar through the center tilts, its middle stays.
  pixels = np.zeros((21, 21, 3), np.uint8)
  pixels[10] = 255
  turned = operate('rotate', 1.0, jnp.asarray(pixels))[..., 0]
  assert turned[10, 10] == 255
  # tan(30 degrees) x 6 columns is 3.5 rows.
  side = np.flatnonzero(turned[:, 16] == 255)
  assert len(side) >= 1 and np.all(np.isin(np.abs(side - 10), (3, 4)))


def test_translation_by_whole_pixels(operate):
  pixels = _random((20, 20, 3))
  moved = operate('translate_x', 1.0, jnp.asarray(pixels))  # 0.45 x 20 = 9.
  np.testing.assert_array_equal(moved[:, :11], pixels[:, 9:])
  assert np.all(moved[:, 11:] == 128)
  moved = operate('translate_y', -1.0, jnp.asarray(pixels))
  np.testing.assert_array_equal(moved[9:], pixels[:11])


# Sizes on the host.


def test_the_size_in_a_header_is_upright():
  image = Image.new('RGB', (7, 5))
  assert decode.size(_encode(image)) == (5, 7)
  exif = Image.Exif()
  exif[0x0112] = 6
  assert decode.size(_encode(image, 'JPEG', exif=exif)) == (7, 5)
  with pytest.raises(decode.CorruptImage):
    decode.size(b'not an image')


def test_decode_resized_changes_proportions_and_nothing_without_need():
  image = Image.fromarray(_random((11, 7, 3)))
  same = decode.resized(_encode(image))
  np.testing.assert_array_equal(same, image)
  other = decode.resized(_encode(image), lambda _: (5, 13))
  expected = image.resize((13, 5), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(other, expected)


def test_large_jpegs_keep_their_own_size_when_asked_to():
  image = Image.fromarray(_random((64, 200, 3)))
  data = _encode(image, 'JPEG')
  decoded = decode.resized(data)
  np.testing.assert_array_equal(decoded, Image.open(io.BytesIO(data)))


def test_crop_on_the_host_reaches_every_edge():
  image = _random((7, 11, 3))
  np.testing.assert_array_equal(decode.crop(image, (5, 8)), image[1:6, 1:9])
  np.testing.assert_array_equal(
    decode.crop(image, (5, 8), np.array([0.0, 0.0])), image[:5, :8]
  )
  last = np.array([0.999, 0.999])
  np.testing.assert_array_equal(decode.crop(image, (5, 8), last), image[2:, 3:])


# Generators' inputs and outputs.


@pytest.mark.parametrize('flip', [False, True])
def test_crop_and_flip_gives_every_part_and_its_mirror_alike(flip):
  image = _random((5, 7, 3))
  images = jnp.asarray(np.repeat(image[None], 1200, axis=0))
  crop = jax.jit(augment.crop_and_flip, static_argnums=(2, 3))
  found = np.asarray(crop(jax.random.key(0), images, (4, 5), flip))
  parts = [
    image[top : top + 4, left : left + 5]
    for top in range(2)
    for left in range(3)
  ]
  if flip:
    parts += [part[:, ::-1] for part in parts]
  counts = [np.all(found == part, axis=(1, 2, 3)).sum() for part in parts]
  assert sum(counts) == 1200
  np.testing.assert_allclose(counts, 1200 / len(parts), rtol=0.35)


def test_crop_and_flip_of_the_whole_image_keeps_it():
  images = jnp.asarray(_random((3, 5, 7, 3)))
  same = augment.crop_and_flip(jax.random.key(0), images, (5, 7), False)
  np.testing.assert_array_equal(same, images)


def test_signed_images_are_between_minus_one_and_one():
  levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
  signed = augment.to_signed(levels)
  assert signed.dtype == jnp.float32
  assert (signed.min(), signed.max()) == (-1, 1)
  np.testing.assert_allclose((signed + 1) * 127.5, levels, atol=1e-4)
