"""Convolutions and instance norm as XLA's CPU backend computes them fastest.

Everything ends in products of matrices, which XLA's CPU backend does at twice
the rate of its convolutions and of their gradients:

    3x3, many channels   Winograd's tiles: a quarter of the multiplications
    few outputs          products first, windows of the few results after
    the rest             XLA's own, but for a gradient without strides

experiments/throughput measures what that is worth. Half precisions are computed
in float32 and rounded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit22b_jax.models.kernels import reference
from vit22b_jax.models.kernels.reference import Maps

Kernel = Float[Array, 'h w I O']

_TILE = 4  # outputs of a Winograd tile, in each direction
_SIZE = 6  # its products, which are also its inputs
_FEW = 4  # outputs; an image has 3, scores 1
# Channels and tiles from which on Winograd's products outweigh its sums.
_CHANNELS, _TILES = 32, 16

# Makes arrays of what XLA would compute within whatever reads them.
materialize = jax.lax.optimization_barrier


def conv(
  x: Maps,
  kernel: Kernel,
  *,
  strides: int = 1,
  pad: int = 0,
  pad_mode: str = 'zero',
  precision: str = 'default',
) -> Maps:
  """Computes `reference.conv`.

  At the precision 'highest' only products of inputs and weights are summed:
  Winograd's tiles have 5 times the rounding errors, 2e-6 of the largest output.
  """
  dtype, size = x.dtype, kernel.shape[0]
  kernel = kernel.astype(dtype)
  x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
  inputs, outputs = kernel.shape[2:]
  if pad_mode == 'reflect' and pad:
    x, pad = reflect(x, pad), 0
  if strides > 1:
    return reference.conv(x, kernel, strides=strides, pad=pad).astype(dtype)
  x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x
  tiles = x.shape[0] * (x.shape[1] // _TILE) * (x.shape[2] // _TILE)
  many = min(inputs, outputs) >= _CHANNELS and tiles >= _TILES
  if many and kernel.shape[:2] == (3, 3) and precision != 'highest':
    y = winograd(x, kernel)
  elif outputs <= _FEW < inputs and size > 1:
    y = few_outputs(x, kernel)
  else:
    y = unstrided(x, kernel)
  return y.astype(dtype)


def _product(a: Array, b: Array) -> Array:
  return materialize(jnp.matmul(materialize(a), materialize(b)))


# Winograd's tiles, arXiv:1509.09308, section 4: with six inputs d in a row and
# three weights g, four outputs are A^T (G g * B^T d), for rows and columns.
# The points of the interpolation are those that round least of the exact ones
# (arXiv:1803.10986, section 5): the usual 0, 1, -1, 2, -2 cost a factor 3.


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns B^T [6, 6], G [6, 3], A [6, 4] of Cook and Toom's interpolation."""
  points = np.array([0, 0.75, -0.75, 1.5, -1.5])
  bt, g, a = np.zeros((_SIZE, _SIZE)), np.zeros((_SIZE, 3)), np.zeros((6, 4))
  for i, point in enumerate(points):
    others = np.delete(points, i)
    bt[i, :5] = np.poly(others)[::-1]
    g[i] = point ** np.arange(3) / np.prod(point - others)
    a[i] = point ** np.arange(_TILE)
  bt[5] = np.poly(points)[::-1]  # the point at infinity
  g[5, 2] = a[5, 3] = 1
  return bt, g, a


_BT, _G, _A = _matrices()
# Of a whole kernel, in the order of `_tiles`: column's point, row's point.
_GG = np.einsum('ri,cj->crij', _G, _G).reshape(_SIZE**2, 9)


def _combine(parts, row):
  """Sums arrays, weighted by the nonzero numbers of a matrix's row."""
  terms = [p if n == 1 else p * n for p, n in zip(parts, row, strict=True) if n]
  return functools.reduce(jnp.add, terms)


def _tiles(
  x: Float[Array, 'B H W C'], matrix: np.ndarray
) -> Float[Array, '36 M C']:
  """Multiplies windows of x, `_TILE` apart, by the matrix on both sides."""
  width = matrix.shape[1]
  b, h, w = len(x), *((n - width) // _TILE + 1 for n in x.shape[1:3])
  rows = [x[:, i : i + _TILE * (h - 1) + 1 : _TILE] for i in range(width)]
  x = materialize(jnp.stack([_combine(rows, m) for m in matrix]))
  last = _TILE * (w - 1) + 1
  columns = [x[:, :, :, i : i + last : _TILE] for i in range(width)]
  x = materialize(jnp.stack([_combine(columns, m) for m in matrix]))
  return x.reshape(_SIZE**2, b * h * w, -1)


def _untile(
  t: Float[Array, '36 M C'], matrix: np.ndarray, b: int, h: int, w: int
) -> Float[Array, 'B H W C']:
  """Transposes `_tiles`: adds windows where they overlap."""
  t = t.reshape(_SIZE, _SIZE, b, h, w, -1)
  t = materialize(_lay([_combine(t, m) for m in matrix.T], axis=3))
  return _lay([_combine(t, m) for m in matrix.T], axis=1)


def _lay(parts: list[Array], axis: int) -> Array:
  """Lays part i of window j at _TILE j + i along an axis."""
  t = jnp.stack(parts, axis + 1)
  more = len(parts) - _TILE
  if more:
    first, rest = jnp.split(t, [_TILE], axis + 1)
    sides = [[(0, 0)] * t.ndim for _ in range(2)]
    sides[0][axis] = (0, 1)
    sides[1][axis], sides[1][axis + 1] = (1, 0), (0, _TILE - more)
    t = jnp.pad(first, sides[0]) + jnp.pad(rest, sides[1])
  shape = (*t.shape[:axis], -1, *t.shape[axis + 2 :])
  size = t.shape[axis] * _TILE - (_TILE - more if more else 0)
  return jax.lax.slice_in_dim(t.reshape(shape), 0, size, axis=axis)


def winograd(x: Maps, kernel: Float[Array, '3 3 I O']) -> Maps:
  """Correlates x with a 3x3 kernel, where it fits within x."""
  height, width = x.shape[1] - 2, x.shape[2] - 2
  x = jnp.pad(x, ((0, 0), (0, -height % _TILE), (0, -width % _TILE), (0, 0)))
  factors = _GG.astype(np.float32) @ kernel.reshape(9, -1)
  y = _winograd(x, factors.reshape(-1, *kernel.shape[2:]))
  return y[:, :height, :width]


@jax.custom_vjp
def _winograd(x, factors):
  return _winograd_forward(x, factors)[0]


def _winograd_forward(x, factors):
  x, factors = materialize((x, factors))
  b, h, w = len(x), x.shape[1] // _TILE, x.shape[2] // _TILE
  products = _product(_tiles(x, _BT), factors)
  return _untile(products, _A, b, h, w), (x, factors)


def _winograd_backward(saved, g):
  """Computes both gradients from one transform of g, and x's tiles anew."""
  x, factors, g = materialize((*saved, g))
  b, h, w = len(x), x.shape[1] // _TILE, x.shape[2] // _TILE
  g = _tiles(g, _A)
  dx = _product(g, jnp.swapaxes(factors, 1, 2))
  # Not a product with held tiles transposed: XLA would write them transposed.
  dfactors = materialize(jnp.einsum('tmi,tmo->tio', _tiles(x, _BT), g))
  return _untile(dx, _BT, b, h, w), dfactors


_winograd.defvjp(_winograd_forward, _winograd_backward)


@jax.custom_vjp
def few_outputs(x: Maps, kernel: Kernel) -> Maps:
  """Correlates by products of every pixel with all weights, then shifts."""
  return _few_forward(x, kernel)[0]


def _few_forward(x, kernel):
  x = materialize(x)
  rows, columns, inputs, outputs = kernel.shape
  weights = kernel.transpose(2, 0, 1, 3).reshape(inputs, -1)
  z = _product(x.reshape(-1, inputs), weights)
  z = z.reshape(*x.shape[:3], rows, columns, outputs)
  h, w = x.shape[1] - rows + 1, x.shape[2] - columns + 1
  taps = [(i, j) for i in range(rows) for j in range(columns)]
  y = sum(z[:, i : i + h, j : j + w, i, j] for i, j in taps)
  return y, (x, weights, kernel)


def _few_backward(saved, g):
  x, weights, kernel = saved
  for axis, size in ((2, kernel.shape[1]), (1, kernel.shape[0])):
    sides = [(0, 0)] * 4
    sides[axis] = (size - 1, size - 1)
    g, length = jnp.pad(g, sides), x.shape[axis]
    parts = [
      jax.lax.slice_in_dim(g, size - 1 - i, size - 1 - i + length, axis=axis)
      for i in range(size)
    ]
    g = materialize(jnp.concatenate(parts, axis=-1))
  g = g.reshape(-1, weights.shape[1])
  dx = _product(g, weights.T)
  dweights = _product(x.reshape(-1, x.shape[-1]).T, g)
  shape = (-1, *kernel.shape[:2], kernel.shape[-1])
  return dx.reshape(x.shape), dweights.reshape(shape).transpose(1, 2, 0, 3)


few_outputs.defvjp(_few_forward, _few_backward)


@jax.custom_vjp
def unstrided(x: Maps, kernel: Kernel) -> Maps:
  """Calls XLA's convolution, with another gradient for x.

  XLA correlates with the kernel flipped and transposed, a copy that takes
  longer than the convolution of a small map; this is the product of the
  gradient and the kernel as it is, whose windows are then added up.
  """
  return reference.conv(x, kernel)


def _unstrided_forward(x, kernel):
  x = materialize(x)
  return reference.conv(x, kernel), (x, kernel)


def _unstrided_backward(saved, g):
  x, kernel = saved
  (rows, columns, inputs, outputs), (b, h, w, _) = kernel.shape, g.shape
  g = materialize(g)
  (dkernel,) = jax.linear_transpose(lambda k: reference.conv(x, k), kernel)(g)
  d = _product(g.reshape(-1, outputs), kernel.reshape(-1, outputs).T)
  d = d.reshape(b, h, w, rows, columns * inputs)
  d = _add_shifted([d[..., i, :] for i in range(rows)], axis=1)
  d = materialize(d).reshape(b, h + rows - 1, w, columns, inputs)
  d = _add_shifted([d[..., i, :] for i in range(columns)], axis=2)
  return d, dkernel


def _add_shifted(parts: list[Array], axis: int) -> Array:
  """Sums the parts, part i shifted by i along an axis."""
  total = 0
  for i, part in enumerate(parts):
    sides = [(0, 0)] * part.ndim
    sides[axis] = (i, len(parts) - 1 - i)
    total += jnp.pad(part, sides)
  return total


unstrided.defvjp(_unstrided_forward, _unstrided_backward)


def reflect(x: Maps, pad: int) -> Maps:
  """Adds `pad` reflected pixels on each side, without repeating the edge."""
  small = min(x.shape[1:3]) < 2 * pad + 2  # what is reflected overlaps
  return reference.pad_reflect(x, pad) if small else _reflect(x, pad)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reflect(x, pad):
  return reference.pad_reflect(x, pad)


def _reflect_forward(x, pad):
  return reference.pad_reflect(x, pad), None


def _reflect_backward(pad, saved, g):
  """Adds the borders to what they mirror, by parts rather than by pads."""
  del saved
  for axis in (1, 2):
    at = [pad, pad + 1, 2 * pad + 1]
    at += [g.shape[axis] - n for n in reversed(at)]
    low, *kept, high = jnp.split(g, at, axis)
    kept[1] += jnp.flip(low, axis)
    kept[3] += jnp.flip(high, axis)
    g = jnp.concatenate(kept, axis)
  return (g,)


_reflect.defvjp(_reflect_forward, _reflect_backward)


@jax.custom_vjp
def instance_norm(x: Maps) -> Maps:
  """Computes `reference.instance_norm`; keeps x and two numbers a channel."""
  return _norm_forward(x)[0]


def _mean(x: Float[Array, 'B H W C']) -> Float[Array, 'B 1 1 C']:
  """Averages over H by a product, which XLA spreads over the cores, then W.

  Over H W at once some CPUs round the sums so coarsely that gradients of a
  ViTUnet are off by 1.5e-3.
  """
  b, h, w, c = x.shape
  columns = jnp.ones((b, 1, h), x.dtype) @ x.reshape(b, h, w * c)
  total = columns.reshape(b, w, c).sum(axis=1)
  return materialize(total / (h * w)).reshape(b, 1, 1, c)


def _norm_forward(x):
  x = materialize(x)
  y = x.astype(jnp.float32)
  mean = _mean(y)
  y -= mean
  root = jax.lax.rsqrt(_mean(jnp.square(y)) + reference.INSTANCE_EPS)
  return (y * root).astype(x.dtype), (x, mean, root)


def _norm_backward(saved, g):
  """Computes (g - mean(g) - y mean(g y)) root, with y the normalized x."""
  x, mean, root, g = materialize((*saved, g))
  y = (x.astype(jnp.float32) - mean) * root
  h = g.astype(jnp.float32)
  dx = (h - _mean(h) - y * _mean(h * y)) * root
  return (dx.astype(x.dtype),)


instance_norm.defvjp(_norm_forward, _norm_backward)
