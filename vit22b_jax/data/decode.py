"""Encoded image files -> RGB uint8 on the host, by Pillow alone.

One decoder serves every source (folders, TFDS records, worker processes), so
the same file gives the same pixels wherever it came from. Pillow decodes JPEG
with the accurate integer DCT; TensorFlow's default differs by up to 5 levels.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator

import numpy as np
import PIL
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

# Pillow opens these too, but has no decoder for them; EPS starts Ghostscript.
_LEFT_OUT = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'IPTC', 'MCIDAS', 'MPEG', 'WMF'}
_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # Orientations that swap width and height.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


class CorruptImage(ValueError):
  """The bytes are not an image that can be decoded without guessing."""


@functools.cache
def formats() -> tuple[str, ...]:
  """Returns the formats that the installed Pillow decodes by itself."""
  Image.init()
  return tuple(sorted(Image.OPEN.keys() - _LEFT_OUT))


@functools.cache
def suffixes() -> frozenset[str]:
  """Returns the suffixes of those formats, as '.png'."""
  kinds = formats()
  registered = Image.registered_extensions()
  return frozenset(s for s, kind in registered.items() if kind in kinds)


def square(data: bytes, image_size: int) -> UInt8[np.ndarray, 'S S 3']:
  """Decodes an image file to RGB, uint8 in [0, 255], `image_size` square.

  Applies the EXIF orientation, composites transparency over white, converts
  palettes, grayscale and CMYK to RGB, scales values of more than 8 bits (see
  `to_rgb`), and takes the first frame of an animation. `fit` makes the square.

  Raises:
    CorruptImage: the bytes can't be decoded.
  """
  with _opened(data) as image:
    return np.asarray(fit(_upright_rgb(image, image_size), image_size))


def resized(
  data: bytes,
  target: Callable[[tuple[int, int]], tuple[int, int]] = lambda size: size,
) -> UInt8[np.ndarray, 'H W 3']:
  """Decodes an image file as `square` does, but keeps the whole of it.

  `target` gives the height and width of the result, given those of the upright
  image; by default they stay.

  Raises:
    CorruptImage: the bytes can't be decoded.
  """
  with _opened(data) as image:
    height, width = target(_upright_size(image))
    rgb = _upright_rgb(image, max(height, width))
    if rgb.size != (width, height):
      rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def alpha(data: bytes) -> UInt8[np.ndarray, 'H W'] | None:
  """Returns how opaque the pixels of an upright image are, in [0, 255].

  None for an image without transparency, and for one of more than 8 bits.

  Raises:
    CorruptImage: the bytes can't be decoded.
  """
  with _opened(data) as image:
    if not image.has_transparency_data or image.mode.startswith(('I', 'F')):
      return None
    opacity = np.asarray(_upright(image).convert('RGBA').getchannel('A'))
  return None if (opacity == 255).all() else opacity


def size(data: bytes) -> tuple[int, int]:
  """Returns an image file's upright height and width, from its header.

  Raises:
    CorruptImage: there is no header that Pillow understands.
  """
  with _opened(data) as image:
    return _upright_size(image)


def crop(
  image: UInt8[np.ndarray, 'h w 3'],
  shape: tuple[int, int],
  draw: Float[np.ndarray, ' 2'] | None = None,
) -> UInt8[np.ndarray, 'H W 3']:
  """Cuts the part that `draw` in [0, 1) chooses; the center for None."""
  spare = np.subtract(image.shape[:2], shape)
  top, left = spare // 2 if draw is None else (draw * (spare + 1)).astype(int)
  return image[top : top + shape[0], left : left + shape[1]]


def to_ppm(image: UInt8[np.ndarray, 'H W 3']) -> bytes:
  """Encodes an image without loss, in no time."""
  header = b'P6 %d %d 255\n' % (image.shape[1], image.shape[0])
  return header + image.tobytes()


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts any Pillow mode to 'RGB', transparency over white.

  16-bit values are of [0, 65535]. Values of 32 bits don't say their range:
  integers are taken to be of 16 bits, unless none is above 255 (those may be
  of 8 bits); floats of [0, 1] up to 1.1, of [0, 255] above it.

  Raises:
    CorruptImage: what is white can't be told.
  """
  if image.mode.startswith(('I', 'F')):
    values = np.asarray(image)
    image = _from_range(values, _white(image, values))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    background = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(background, image)
  return image if image.mode == 'RGB' else image.convert('RGB')


def fit(image: Image.Image, image_size: int) -> Image.Image:
  """Resizes the central square to `image_size`, antialiased (bicubic).

  The same as resizing the shorter side and cropping the center. An image which
  has the size already is returned as it is.
  """
  if image.size == (image_size, image_size):
    return image
  width, height = image.size
  side = min(width, height)
  left, top = (width - side) // 2, (height - side) // 2
  return image.resize(
    (image_size, image_size),
    Image.Resampling.BICUBIC,
    box=(left, top, left + side, top + side),
  )


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  """Opens an image file; turns every error of Pillow into CorruptImage."""
  try:
    with Image.open(io.BytesIO(data), formats=formats()) as image:
      yield image
  except (MemoryError, CorruptImage):
    raise
  except PIL.UnidentifiedImageError as error:  # It names an address in memory.
    raise CorruptImage(
      'no image, or of a format that is not decoded' if data else 'empty'
    ) from error
  except Exception as error:  # Pillow's plugins raise whatever they like.
    raise CorruptImage(f'{type(error).__name__}: {error}') from error


def _orientation(image: Image.Image) -> int:
  """Reads the EXIF orientation; 1 (upright) if it is damaged or unknown."""
  try:
    found = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # Damaged metadata are no damaged pixels.
    return 1
  return found if found in _TURNS else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
  """Returns height and width of an image that is not yet loaded."""
  width, height = image.size
  sideways = _orientation(image) in _SIDEWAYS
  if image.format == 'TIFF' and image.tag_v2.get(_ORIENTATION) in _SIDEWAYS:
    sideways = False  # Pillow has swapped the sides already.
  return (width, height) if sideways else (height, width)


def _upright_rgb(image: Image.Image, side: int) -> Image.Image:
  """Loads and turns an image; `side` is the longest that will be needed.

  A JPEG decoder can skip detail that a resize would average away; at twice the
  final size nothing of it is visible, and photos decode faster.
  """
  image.draft(None, (2 * side, 2 * side))
  return to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
  image.load()
  if image.format == 'TIFF':  # Pillow turns those while loading.
    return image
  turn = _TURNS.get(_orientation(image))
  return image if turn is None else image.transpose(turn)


def _white(image: Image.Image, values: Shaped[np.ndarray, 'H W']) -> float:
  """Returns the value of white in an image of more than 8 bits a channel."""
  if image.mode.startswith('I;') or (image.mode, image.format) == ('I', 'PPM'):
    return 65535
  low, high = values.min(), values.max()  # NaN if any value is.
  found = f'{values.dtype} values in [{low:g}, {high:g}]'
  if image.mode == 'F':
    if low >= -0.01 and high <= 255.5:
      return 1 if high <= 1.1 else 255
    raise CorruptImage(f'{found}: expected [0, 1] or [0, 255]')
  if low < 0 or high > 65535:
    raise CorruptImage(f'{found}: expected [0, 65535]; save it as uint16')
  if 0 < high <= 255:
    raise CorruptImage(f'{found}: of 8 or 16 bits? Save it as uint8 or uint16')
  return 65535


def _from_range(
  values: Shaped[np.ndarray, 'H W'], largest: float
) -> Image.Image:
  """Scales [0, largest] to [0, 255]; clips values outside."""
  scaled = np.clip(values.astype(np.float64) * (255 / largest), 0, 255)
  return Image.fromarray(np.rint(scaled).astype(np.uint8))
