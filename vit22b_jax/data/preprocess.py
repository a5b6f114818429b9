"""Images of any size -> one size: resized on the host, then cropped.

- `resize_and_crop`: to `load`, whatever the proportions; then a crop.
- `crop`: a crop of the image as it is.
- `scale_width`: to the width of `load`, proportions kept; then a crop.
- `none`: as it is; it must have the size of the crop.

    >>> resize = Resize.parse('scale_width', load_size=286, image_size=256)
    >>> resize((600, 300))  # height and width before the crop
    (572, 286)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vit22b_jax import errors
from vit22b_jax.data import decode, records

MODES = ('resize_and_crop', 'crop', 'scale_width', 'none')
Size = tuple[int, int]  # Height and width.


@dataclasses.dataclass(frozen=True)
class Resize:
  """Changes an image's size before it is cropped.

  Attributes:
    mode: one of MODES.
    load: what images are resized to, if the mode does.
    crop: the size of the crop.
  """

  mode: str
  load: Size
  crop: Size

  @classmethod
  def parse(
    cls,
    mode: str,
    load_size: int | Size | None,
    image_size: int | Size,
  ) -> 'Resize':
    """Reads the configuration's `preprocess`, `load_size` and `image_size`.

    Sizes are sides, or height and width; without a `load_size` it's image_size.

    Raises:
      UserError: sizes that aren't any, or a crop larger than what it is taken
        from.
    """
    crop = _size('image_size', image_size)
    load = _size('load_size', load_size or crop)
    axes = {'resize_and_crop': (0, 1), 'scale_width': (1,)}.get(mode, ())
    if any(load[axis] < crop[axis] for axis in axes):
      raise errors.UserError(
        f'data.load_size={show(load)} is smaller than data.image_size='
        f'{show(crop)}, and {mode} crops the one from the other.'
      )
    return cls(mode, load, crop)

  def __call__(self, size: Size) -> Size:
    """Returns the resized image's height and width, given the original's."""
    if self.mode == 'resize_and_crop':
      return self.load
    if self.mode == 'scale_width':
      height, width = size
      return round(height * self.load[1] / width), self.load[1]
    return size


@dataclasses.dataclass(frozen=True)
class Decode:
  """Decodes and resizes an image and, if `center`, crops its center.

  Not a closure, since worker processes need it too.
  """

  resize: Resize
  center: bool

  def __call__(self, data: bytes) -> UInt8[np.ndarray, 'H W 3']:
    image = decode.resized(data, self.resize)
    return decode.crop(image, self.resize.crop) if self.center else image


def sizes(images: records.Records, resize: Resize) -> set[Size]:
  """Returns the sizes of the resized images, without unreadable ones.

  Raises:
    UserError: images that don't hold the crop.
  """
  if resize.mode == 'resize_and_crop':
    return {resize.load}
  found, wrong = set(), []
  for row, (size, _) in enumerate(records.apply(images, decode.size)):
    if isinstance(size, decode.CorruptImage):
      continue
    resized = resize(size)
    found.add(resized)
    if min(np.subtract(resized, resize.crop)) < 0 or (
      resize.mode == 'none' and resized != resize.crop
    ):
      wrong.append(f'  {images.name(row)} ({show(size)})')
  if wrong:
    raise errors.UserError(_too_small(wrong, resize))
  return found


def show(size: Size) -> str:
  """Writes HEIGHTxWIDTH, for messages and file names."""
  return f'{size[0]}x{size[1]}'


def _too_small(wrong: list[str], resize: Resize) -> str:
  shown = '\n'.join(wrong[:10] + ['  ...'] * (len(wrong) > 10))
  what = {
    'crop': 'smaller than the crop',
    'scale_width': f'lower than the crop once {resize.load[1]} wide',
    'none': 'of another size',
  }[resize.mode]
  return (
    f'{len(wrong)} image(s) are {what}, data.image_size='
    f'{show(resize.crop)} (height x width), and data.preprocess='
    f'{resize.mode}:\n{shown}\nChoose another image_size, or '
    '--config.data.preprocess=resize_and_crop.'
  )


def _size(key: str, value: int | Sequence[int]) -> Size:
  sides = (value, value) if isinstance(value, int) else tuple(value)
  if len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
    raise errors.UserError(
      f'data.{key}={value!r}: expected a side in pixels, or (height, width).'
    )
  return sides
