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
from etils import epath
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps

_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112  # EXIF: values from 5 on lie on their side.


class CorruptImage(ValueError):
  """The bytes are not an image that Pillow can decode."""


def find(folder: epath.Path) -> list[epath.Path]:
  """Image files below a folder at any depth, sorted by path.

  An image is known by its suffix, one of the formats that Pillow opens; hidden
  files and folders are left aside.
  """
  found = []
  for path in folder.iterdir():
    if path.name.startswith('.'):
      continue
    if path.suffix.lower() in _suffixes():
      found.append(path)
    elif path.is_dir():
      found += find(path)
  return sorted(found)


@functools.cache
def _suffixes() -> frozenset[str]:
  registered = Image.registered_extensions()
  return frozenset(s for s, kind in registered.items() if kind in Image.OPEN)


def decode(data: bytes, image_size: int) -> UInt8[np.ndarray, 'S S 3']:
  """Decodes an image file to RGB, uint8 in [0, 255], `image_size` square.

  EXIF orientation is applied, transparency is composited over white, palette,
  greyscale and CMYK become RGB, 16-bit values are scaled to 8 bits (not
  clipped), and of an animation the first frame counts. For `fit` see there.

  Args:
    data: the file's bytes, in any format that Pillow reads.
    image_size: side of the result in pixels.

  Raises:
    CorruptImage: the bytes can't be decoded.
  """
  with _opened(data) as image:
    return np.asarray(fit(_upright_rgb(image, image_size), image_size))


def size(data: bytes) -> tuple[int, int]:
  """Height and width of an image file, upright, from its header.

  Raises:
    CorruptImage: there is no header that Pillow understands.
  """
  with _opened(data) as image:
    width, height = image.size
    lies = image.getexif().get(_ORIENTATION, 1) >= 5
  return (width, height) if lies else (height, width)


def decode_resized(
  data: bytes, target: Callable[[tuple[int, int]], tuple[int, int]]
) -> UInt8[np.ndarray, 'H W 3']:
  """Decodes an image file as `decode` does, but resizes the whole of it.

  Args:
    data: the file's bytes.
    target: height and width of the result, given those of the image; the
      proportions need not stay.

  Raises:
    CorruptImage: the bytes can't be decoded.
  """
  height, width = target(size(data))
  with _opened(data) as image:
    rgb = _upright_rgb(image, max(height, width))
    if rgb.size != (width, height):
      rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def crop(
  image: UInt8[np.ndarray, 'h w 3'],
  shape: tuple[int, int],
  draw: Float[np.ndarray, ' 2'] | None = None,
) -> UInt8[np.ndarray, 'H W 3']:
  """The part of an image which `draw` in [0, 1) chooses; None: the centre."""
  spare = np.subtract(image.shape[:2], shape)
  top, left = spare // 2 if draw is None else (draw * (spare + 1)).astype(int)
  return image[top : top + shape[0], left : left + shape[1]]


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  """An image file opened; whatever goes wrong with it is a CorruptImage."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      yield image
  except MemoryError:
    raise
  except PIL.UnidentifiedImageError as error:  # It names an address in memory.
    raise CorruptImage('no image format that Pillow knows') from error
  except Exception as error:  # Pillow's plugins raise whatever they like.
    raise CorruptImage(f'{type(error).__name__}: {error}') from error


def _upright_rgb(image: Image.Image, side: int) -> Image.Image:
  """Applies the EXIF orientation; `side` is the longest that will be needed.

  A JPEG decoder can skip detail that a resize would average away; at twice the
  final size nothing of it is visible, and photos decode faster.
  """
  image.draft(None, (2 * side, 2 * side))
  ImageOps.exif_transpose(image, in_place=True)
  return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts any Pillow mode to 'RGB', transparency over white."""
  if image.mode.startswith('I'):
    # Modes I;16* and I (what PNG and TIFF of 16 bits open as): [0, 65535].
    image = _from_range(np.asarray(image), 65535)
  elif image.mode == 'F':
    values = np.asarray(image)
    image = _from_range(values, 1 if values.max() <= 1 else 255)
  if image.has_transparency_data:
    image = image.convert('RGBA')
    background = Image.new('RGBA', image.size, _WHITE)
    image = Image.alpha_composite(background, image)
  return image if image.mode == 'RGB' else image.convert('RGB')


def fit(image: Image.Image, image_size: int) -> Image.Image:
  """Resizes the central square to `image_size`, antialiased (bicubic).

  The same as resizing the shorter side and cropping the centre. An image which
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


def _from_range(values: Int[np.ndarray, 'H W'], largest: float) -> Image.Image:
  """Scales [0, largest] to [0, 255]; values outside are clipped."""
  scaled = np.clip(values.astype(np.float64) * (255 / largest), 0, 255)
  return Image.fromarray(np.rint(scaled).astype(np.uint8))
