"""Crops, flips and erased boxes of one image, drawn by a key.

Pure functions for jit: shapes are known, places and sizes are drawn. Vmapped
over keys and images, a batch doesn't depend on how it is sharded.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

_ATTEMPTS = 10  # As torchvision: boxes drawn until one fits.
_ERASE_SCALE = (0.02, 0.33)  # torchvision.transforms.RandomErasing
_ERASE_RATIO = (0.3, 3.3)

Size = tuple[int, int]  # Height and width.


def center(image: UInt8[Array, 'h w C'], size: Size) -> UInt8[Array, 'H W C']:
  """Cuts the central part of that size."""
  top, left = ((n - s) // 2 for n, s in zip(image.shape, size, strict=False))
  return image[top : top + size[0], left : left + size[1]]


def random(
  key: PRNGKeyArray, image: UInt8[Array, 'h w C'], size: Size, padding: int
) -> UInt8[Array, 'H W C']:
  """Pads with zeros on each side, and cuts a part of that size anywhere."""
  pad = ((padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(image, pad) if padding else image
  spare = jnp.subtract(jnp.array(padded.shape[:2]), jnp.array(size))
  top, left = jax.random.randint(key, (2,), 0, spare + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), (*size, image.shape[2]))


def random_resized(
  key: PRNGKeyArray,
  image: UInt8[Array, 'h w C'],
  size: Size,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> UInt8[Array, 'H W C']:
  """Cuts a box of random area and proportions and resizes it.

  As torchvision.transforms.RandomResizedCrop: ten boxes are drawn, of shares of
  the area in `scale` and width / height in `ratio`, and the first that fits is
  taken, or else the central one of the nearest proportions.
  """
  box, fits = _draw_box(
    key, image.shape[:2], scale, (1 / ratio[1], 1 / ratio[0])
  )
  box = jnp.where(fits, box, _central_box(image.shape[:2], ratio))
  return resize_box(image, box, size)


def resize_box(
  image: UInt8[Array, 'h w C'], box: Int[Array, '4'], size: Size
) -> UInt8[Array, 'H W C']:
  """Resizes a part of an image, bilinear and antialiased as Pillow.

  The box, which may be traced, is top, left, height and width.
  """
  down = _weights(image.shape[0], box[0], box[2], size[0])
  across = _weights(image.shape[1], box[1], box[3], size[1])
  x = jnp.einsum(
    'Hh,hwc,Ww->HWc', down, image.astype(jnp.float32), across,
    precision='highest',
  )  # fmt: skip
  return jnp.clip(jnp.floor(x + 0.5), 0, 255).astype(jnp.uint8)


def flip(
  key: PRNGKeyArray, image: UInt8[Array, 'H W C'], axis: int, probability: float
) -> UInt8[Array, 'H W C']:
  """Mirrors an image along an axis at random."""
  flipped = jax.random.bernoulli(key, probability)
  return jnp.where(flipped, jnp.flip(image, axis), image)


def erase(
  key: PRNGKeyArray, image: Float[Array, 'H W C'], probability: float
) -> Float[Array, 'H W C']:
  """Sets a random box to 0, the mean color of normalized images.

  As torchvision.transforms.RandomErasing (Zhong et al. 2017,
  arXiv:1708.04896): 2 to 33 % of the area, height / width from 0.3 to 3.3.
  """
  which, where = jax.random.split(key)
  height, width, _ = image.shape
  box, fits = _draw_box(
    where, (height - 1, width - 1), _ERASE_SCALE, _ERASE_RATIO, (height, width)
  )
  erased = jax.random.bernoulli(which, probability) & fits
  inside = box_mask((height, width), box)
  return jnp.where(erased & inside[..., None], 0, image)


def box_mask(size: Size, box: Int[Array, '4']) -> Bool[Array, 'H W']:
  """Returns which pixels lie in a box: top, left, height and width."""
  top, left, height, width = box
  rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])
  inside_rows = (rows >= top) & (rows < top + height)
  return inside_rows & (columns >= left) & (columns < left + width)


def _draw_box(
  key: PRNGKeyArray,
  largest: Size,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  size: Size | None = None,
) -> tuple[Int[Array, '4'], Bool[Array, '']]:
  """Draws boxes; returns the first that fits, and whether one does.

  `scale` are shares of the area of `size`, by default that of the `largest` box
  that fits; `ratio` is height / width.
  """
  size = size or largest
  areas, ratios, down, across = jax.random.uniform(key, (4, _ATTEMPTS))
  area = size[0] * size[1] * (scale[0] + areas * (scale[1] - scale[0]))
  low, high = jnp.log(jnp.array(ratio))
  proportions = jnp.exp(low + ratios * (high - low))
  heights = jnp.round(jnp.sqrt(area * proportions)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(area / proportions)).astype(jnp.int32)
  fits = (heights > 0) & (heights <= largest[0])
  fits &= (widths > 0) & (widths <= largest[1])
  tops = (down * (size[0] - heights + 1)).astype(jnp.int32)
  lefts = (across * (size[1] - widths + 1)).astype(jnp.int32)
  boxes = jnp.stack([tops, lefts, heights, widths])
  return boxes[:, jnp.argmax(fits)], fits.any()


def _central_box(size: Size, ratio: tuple[float, float]) -> Int[Array, '4']:
  """Returns the largest central box whose width / height is in the range."""
  height, width = size
  if width / height < ratio[0]:
    height = round(width / ratio[0])
  elif width / height > ratio[1]:
    width = round(height * ratio[1])
  top, left = (size[0] - height) // 2, (size[1] - width) // 2
  return jnp.array([top, left, height, width])


def _weights(
  length: int, start: Int[Array, ''], part: Int[Array, ''], out: int
) -> Float[Array, 'out length']:
  """Returns how much each pixel of a part gives to each of `out` pixels."""
  scale = part / out
  place = start + (jnp.arange(out) + 0.5) * scale
  pixels = jnp.arange(length)
  distance = (pixels + 0.5 - place[:, None]) / jnp.maximum(scale, 1)
  weights = jnp.maximum(1 - jnp.abs(distance), 0)
  weights *= (pixels >= start) & (pixels < start + part)
  return weights / weights.sum(axis=1, keepdims=True)
