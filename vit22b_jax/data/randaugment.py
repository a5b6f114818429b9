"""RandAugment for one image in pure JAX (https://arxiv.org/abs/1909.13719).

Fourteen operations, drawn uniformly, with Pillow's arithmetic. Under vmap a
`switch` would compute all fourteen for each image; so the operations are three
stages, each computed once and neutral for the others' operations: a geometric
one (an affine map), a blend (of the image with a degenerate one) and a table
(256 entries for each channel).
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

Pixels = UInt8[Array, 'H W 3']
Index = Int[Array, '']  # into OPERATIONS
Level = Float[Array, '']  # strength

OPERATIONS = (
  # Geometric.
  'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y',
  # Blends.
  'brightness', 'contrast', 'color', 'sharpness',
  # Tables.
  'autocontrast', 'equalize', 'posterize', 'solarize', 'identity',
)  # fmt: skip


def apply(
  key: PRNGKeyArray, image: UInt8[Array, 'H W 3'], layers: int, magnitude: float
) -> UInt8[Array, 'H W 3']:
  """Applies so many random operations, of strength 0 to 10, one by one."""
  for layer in jax.random.split(key, layers):
    choose, sign = jax.random.split(layer)
    operation = jax.random.randint(choose, (), 0, len(OPERATIONS))
    level = jnp.where(jax.random.bernoulli(sign), 1.0, -1.0) * magnitude / 10
    image = operate(operation, level, image)
  return image


def operate(operation: Index, level: Level, image: Pixels) -> Pixels:
  """Applies an operation by its index, with strength in [-1, 1].

  The sign counts where there are two directions.
  """
  image = _geometric(operation, level, image)
  image = _blend(operation, level, image)
  return _table(operation, jnp.abs(level), image)


def _is(operation: Int[Array, ''], name: str) -> Float[Array, '']:
  return (operation == OPERATIONS.index(name)).astype(jnp.float32)


def _geometric(operation: Index, level: Level, image: Pixels) -> Pixels:
  """Rotates up to 30 degrees, shears to 0.3, moves by 0.45 of the side.

  Nearest neighbor about the center, mid-gray outside.
  """
  height, width, _ = image.shape
  angle = _is(operation, 'rotate') * level * jnp.deg2rad(30.0)
  shear_x = _is(operation, 'shear_x') * level * 0.3
  shear_y = _is(operation, 'shear_y') * level * 0.3
  move_x = _is(operation, 'translate_x') * level * 0.45 * width
  move_y = _is(operation, 'translate_y') * level * 0.45 * height
  y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
  y, x = y - (height - 1) / 2, x - (width - 1) / 2
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  from_x = cos * x - sin * y + shear_x * y + move_x + (width - 1) / 2
  from_y = sin * x + cos * y + shear_y * x + move_y + (height - 1) / 2
  column, row = (jnp.rint(v).astype(jnp.int32) for v in (from_x, from_y))
  inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
  moved = image[row.clip(0, height - 1), column.clip(0, width - 1)]
  return jnp.where(inside[..., None], moved, jnp.uint8(128))


def _blend(operation: Index, level: Level, image: Pixels) -> Pixels:
  """Computes degenerate + (1 + 0.9 level) (image - degenerate), as Pillow."""
  values = image.astype(jnp.float32)
  # Pillow's integer luma (ITU-R 601-2).
  weights = jnp.array([19595, 38470, 7471])
  gray = ((image.astype(jnp.int32) @ weights + 0x8000) >> 16)[..., None]
  gray = gray.astype(jnp.float32)
  degenerate = (
    _is(operation, 'contrast') * jnp.floor(gray.mean() + 0.5)
    + _is(operation, 'color') * gray
    + _is(operation, 'sharpness') * _smooth(values)
  )
  blends = sum(
    _is(operation, name)
    for name in ('brightness', 'contrast', 'color', 'sharpness')
  )
  factor = 1 + blends * 0.9 * level
  mixed = degenerate + factor * (values - degenerate)
  return jnp.where(blends > 0, jnp.clip(mixed, 0, 255).astype(jnp.uint8), image)


def _smooth(values: Float[Array, 'H W 3']) -> Float[Array, 'H W 3']:
  """Applies PIL.ImageFilter.SMOOTH: 3x3, center 5 of 13; the border stays."""
  height, width, _ = values.shape
  inner = sum(
    values[dy : height - 2 + dy, dx : width - 2 + dx]
    * (5 if dy == dx == 1 else 1)
    for dy in range(3)
    for dx in range(3)
  )
  return values.at[1:-1, 1:-1].set(jnp.floor(inner / 13 + 0.5))


def _table(operation: Index, level: Level, image: Pixels) -> Pixels:
  """Posterizes (8 to 4 bits), solarizes, stretches or equalizes: look-ups."""
  values = jnp.arange(256)
  bits = 8 - jnp.rint(4 * level).astype(jnp.int32)
  posterize = values & ~((1 << (8 - bits)) - 1)
  solarize = jnp.where(values < 256 * (1 - level), values, 255 - values)

  def lookup(channel: UInt8[Array, 'H W']) -> UInt8[Array, 'H W']:
    """Maps one channel through its own table."""
    counts = jnp.bincount(channel.ravel(), length=256)
    table = jnp.select(
      [_is(operation, name) > 0 for name in
       ('posterize', 'solarize', 'autocontrast', 'equalize')],
      [posterize, solarize, _autocontrast(counts), _equalize(counts)],
      values,
    )  # fmt: skip
    return table.astype(jnp.uint8)[channel]

  return jax.vmap(lookup, in_axes=-1, out_axes=-1)(image)


def _autocontrast(counts: Int[Array, '256']) -> Int[Array, '256']:
  """Returns PIL.ImageOps.autocontrast's table: stretches to [0, 255]."""
  values = jnp.arange(256)
  low = jnp.argmax(counts > 0)
  high = 255 - jnp.argmax(counts[::-1] > 0)
  scale = 255 / jnp.maximum(high - low, 1)
  stretched = jnp.floor((values - low) * scale).clip(0, 255).astype(int)
  return jnp.where(high > low, stretched, values)


def _equalize(counts: Int[Array, '256']) -> Int[Array, '256']:
  """Returns PIL.ImageOps.equalize's table: a flat histogram."""
  values = jnp.arange(256)
  last = 255 - jnp.argmax(counts[::-1] > 0)
  step = (counts.sum() - counts[last]) // 255
  before = jnp.cumsum(counts) - counts
  table = ((step // 2 + before) // jnp.maximum(step, 1)).clip(0, 255)
  return jnp.where(step > 0, table, values)
