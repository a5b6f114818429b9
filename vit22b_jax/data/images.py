"""Encoded image files -> RGB uint8 squares on the host, by Pillow alone.

One decoder serves every source (folders, TFDS records, worker processes), so
the same file gives the same pixels wherever it came from. Pillow decodes JPEG
with the accurate integer DCT; TensorFlow's default differs by up to 5 levels.
"""

import functools
import io

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

_WHITE = (255, 255, 255, 255)


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
  try:
    with Image.open(io.BytesIO(data)) as image:
      # A JPEG decoder can skip detail that the resize would average away; at
      # twice the final size nothing of it is visible, and photos decode faster.
      image.draft(None, (2 * image_size, 2 * image_size))
      ImageOps.exif_transpose(image, in_place=True)
      return np.asarray(fit(to_rgb(image), image_size))
  except MemoryError:
    raise
  except Exception as error:  # Pillow's plugins raise whatever they like.
    raise CorruptImage(f'{type(error).__name__}: {error}') from error


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
