"""Images of any size -> one size: resized on the host, then cropped.

- `resize_and_crop`: to `load`, whatever the proportions; then a crop.
- `crop`: a crop of the image as it is.
- `scale_width`: to the width of `load`, proportions kept; then a crop.
- `none`: as it is; it must have the size of the crop.

    >>> resize = Resize('scale_width', load=286, crop=256)
    >>> resize((600, 300))  # height and width before the crop
    (572, 286)
"""

import dataclasses

from vit22b_jax import errors
from vit22b_jax.data import decode, encoded

Size = tuple[int, int]  # Height and width.


@dataclasses.dataclass(frozen=True)
class Resize:
  """Changes an image's size to `load`, before a square of side `crop` is cut.

  These are the config's `preprocess`, `load_size` and `image_size`.

  Raises:
    UserError: the crop is larger than what it is taken from.
  """

  mode: str
  load: int
  crop: int

  def __post_init__(self):
    resizes = self.mode in ('resize_and_crop', 'scale_width')
    if resizes and self.load < self.crop:
      raise errors.UserError(
        f'data.load_size={self.load} is smaller than data.image_size='
        f'{self.crop}, and {self.mode} crops the one from the other.'
      )

  def __call__(self, size: Size) -> Size:
    """Returns the resized image's height and width, given the original's."""
    if self.mode == 'resize_and_crop':
      return self.load, self.load
    if self.mode == 'scale_width':
      height, width = size
      return round(height * self.load / width), self.load
    return size


def sizes(images: encoded.Records, resize: Resize) -> list[Size | None]:
  """Returns the sizes of the resized images; None for unreadable ones.

  Raises:
    UserError: images that don't hold the crop.
  """
  if resize.mode == 'resize_and_crop':
    return [(resize.load, resize.load)] * len(images)
  found, wrong = [], []
  for row, (size, _) in enumerate(encoded.apply(images, decode.size)):
    if isinstance(size, decode.CorruptImage):
      found.append(None)
      continue
    found.append(resize(size))
    sides = {*found[-1], resize.crop}
    if min(sides) < resize.crop or (resize.mode == 'none' and len(sides) > 1):
      wrong.append(f'  {images.name(row)} ({size[0]}x{size[1]})')
  if wrong:
    shown = '\n'.join(wrong[:10] + ['  ...'] * (len(wrong) > 10))
    what = {
      'crop': 'smaller than the crop',
      'scale_width': f'lower than the crop once {resize.load} wide',
      'none': 'of another size',
    }[resize.mode]
    raise errors.UserError(
      f'{len(wrong)} image(s) are {what}, data.image_size={resize.crop} '
      f'(height x width), and data.preprocess={resize.mode}:\n{shown}\nChoose '
      'another image_size, or --config.data.preprocess=resize_and_crop.'
    )
  return found
