"""Patch and position embeddings, and positions for another image size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import axes, inits, kernels


def sincos_2d(height: int, width: int, dim: int) -> Float[np.ndarray, 'L D']:
  """Fixed positions of a grid: sines and cosines of column, then of row.

  As in MoCo-v3 (arXiv:2104.02057, section 4.2) and big_vision's
  `posemb_sincos_2d`; a quarter of the dimensions each, in [-1, 1].

    >>> sincos_2d(2, 3, 8).shape
    (6, 8)
    >>> sincos_2d(2, 3, 8)[0].tolist()  # of the upper left corner
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]

  Raises:
    UserError: when `dim` is not a multiple of 4.
  """
  if dim % 4 or dim < 8:
    raise errors.UserError(
      f'model.width={dim} is not a multiple of 4 from 8, which fixed positions '
      "(model.pos_embedding='sincos', model.resample='space') are made of."
    )
  omega = 10_000.0 ** -(np.arange(dim // 4) / (dim // 4 - 1))
  rows, columns = np.mgrid[:height, :width].reshape(2, -1, 1) * omega
  waves = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
  return np.concatenate(waves, axis=1).astype(np.float32)


def fixed_positions(
  height: int, width: int, dim: int, extra: int
) -> Float[np.ndarray, 'L D']:
  """`sincos_2d` of a grid after `extra` class tokens, which get zero."""
  return np.pad(sincos_2d(height, width, dim), ((extra, 0), (0, 0)))


def resample_positions(
  positions: Float[Array, 'L D'], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, 'M D']:
  """Resamples positions of `old` rows and columns of patches to `new` ones.

  By bicubic interpolation; rows in front (a class token's) stay as they are.
  """
  extra = positions.shape[0] - old[0] * old[1]
  token, grid = positions[:extra], positions[extra:]
  dim = positions.shape[1]
  grid = jax.image.resize(
    grid.reshape(*old, dim), (*new, dim), 'bicubic', antialias=True
  )
  return jnp.concatenate([token, grid.reshape(-1, dim)])


class Positions(nn.Module):
  """Adds a learned or a fixed vector for each position."""

  kind: str  # 'learned', or 'sincos' (a class token then gets zero)
  init_kind: str

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B L D'], grid: tuple[int, int]
  ) -> Float[Array, 'B L D']:
    """`grid` is rows and columns; tokens in front of it are class tokens."""
    length, dim = x.shape[1:]
    if self.kind == 'sincos':
      positions = fixed_positions(*grid, dim, length - grid[0] * grid[1])
    else:
      names = (axes.POSITION, axes.EMBED)
      init = nn.with_logical_partitioning(
        inits.POSITIONS[self.init_kind], names
      )
      positions = self.param('pos_embedding', init, (length, dim), jnp.float32)
      positions = kernels.gather_for_compute(positions, names, x.dtype)
    return x + jnp.asarray(positions, x.dtype)
