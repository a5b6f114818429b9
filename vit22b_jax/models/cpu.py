"""Products and norms in the order that XLA's CPU backend computes them fastest.

`ops` calls these on a CPU; values and gradients are those of its own formulas.
Two habits of the compiler are worked around. It fuses elementwise arithmetic
into whatever reads the result, so a GELU's gradient was computed once for each
of the three products that read it, once of them element by element into a
transposed copy (84 ms in place of 2): `hold` makes it an array first. And it
transposes the wider operand of a weight's gradient, where either will do.
experiments/throughput says what that is worth.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

hold = jax.lax.optimization_barrier


def linear(
  x: Float[Array, '*B D'],
  kernel: Float[Array, 'D F'],
  bias: Float[Array, ' F'] | None,
  precision: str,
) -> Float[Array, '*B F']:
  """x W + b, all of one dtype."""
  y = _rows(x.reshape(-1, x.shape[-1]), kernel, bias, precision)
  return y.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rows(x, kernel, bias, precision):
  """`linear` of a matrix; its gradient is then read in one shape by all."""
  y = jnp.matmul(x, kernel, precision=precision)
  return y if bias is None else y + bias


def _rows_forward(x, kernel, bias, precision):
  x = hold(x)
  return _rows(x, kernel, bias, precision), (x, kernel, bias)


def _rows_backward(precision, saved, g):
  x, kernel, bias = saved
  product = functools.partial(jnp.matmul, precision=precision)
  g = hold(g)
  if x.shape[1] <= g.shape[1]:
    dkernel = product(hold(x.T), g)
  else:
    dkernel = hold(product(hold(g.T), x)).T
  dbias = None if bias is None else g.sum(axis=0)
  return product(g, kernel.T), dkernel, dbias


_rows.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm(
  x: Float[Array, '*B D'],
  scale: Float[Array, ' D'] | None,
  bias: Float[Array, ' D'] | None,
  eps: float,
  centre: bool,
) -> Float[Array, '*B D']:
  """`ops.norm`, of which the backward pass keeps x and two numbers a row."""
  return norm_forward(x, scale, bias, eps, centre)[0]


def norm_forward(
  x: Float[Array, '*B D'],
  scale: Float[Array, ' D'] | None,
  bias: Float[Array, ' D'] | None,
  eps: float,
  centre: bool,
) -> tuple[Float[Array, '*B D'], tuple[Array | None, ...]]:
  """`ops.norm`'s formula on any backend, and what `norm` saves of it."""
  y = x.astype(jnp.float32)
  mean = y.mean(axis=-1, keepdims=True) if centre else jnp.zeros(())
  y -= mean
  root = jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + eps)
  y *= root
  y = y if scale is None else y * scale
  y = y if bias is None else y + bias
  return y.astype(x.dtype), (x, mean, root, scale, bias)


def _norm_backward(eps, centre, saved, g):
  """With y the normalised row and h = g scale, dx is

  (h - mean(h) - y mean(h y)) root, without mean(h) where nothing is centred.
  """
  del eps
  x, mean, root, scale, bias = saved
  # Held, y is computed anew from x; else the forward pass would write it out.
  x, mean, root, g = hold((x, mean, root, g))
  y = (x.astype(jnp.float32) - mean) * root
  g = g.astype(jnp.float32)
  rows = tuple(range(x.ndim - 1))
  dscale = None if scale is None else (g * y).sum(axis=rows)
  dbias = None if bias is None else g.sum(axis=rows)
  h = g if scale is None else g * scale
  dx = h - y * (h * y).mean(axis=-1, keepdims=True)
  dx = dx - h.mean(axis=-1, keepdims=True) if centre else dx
  return (dx * root).astype(x.dtype), dscale, dbias


norm.defvjp(norm_forward, _norm_backward)
