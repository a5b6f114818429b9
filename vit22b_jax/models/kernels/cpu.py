"""The operations of `reference` as XLA's CPU backend computes them fastest.

Two habits of the compiler are worked around. It fuses elementwise arithmetic
into whatever reads the result, so that a GELU's gradient was computed for each
of three products (84 ms in place of 2): `materialize` makes it an array first.
And it transposes the wider operand of a weight's gradient, where either will
do. A CPU's products cast weights for themselves.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models.kernels import cpu_convolutions, reference
from vit22b_jax.models.kernels.reference import Heads, Rows, Vector

materialize = cpu_convolutions.materialize
conv = cpu_convolutions.conv
instance_norm = cpu_convolutions.instance_norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm(
  x: Rows, scale: Vector, bias: Vector, eps: float, center: bool
) -> Rows:
  """Computes `reference.norm`; the backward pass keeps x and two numbers a row.

  With y the normalized row and h = g scale, the gradient for x is
  (h - mean(h) - y mean(h y)) root, without mean(h) where nothing is centered.
  """
  return reference.norm(x, scale, bias, eps, center)


def _norm_forward(x, scale, bias, eps, center):
  y, mean, root = reference.normalize(x, eps, center)
  y = y if scale is None else y * scale
  y = y if bias is None else y + bias
  return y.astype(x.dtype), (x, mean, root, scale, bias)


def _norm_backward(eps, center, saved, g):
  del eps
  x, mean, root, scale, bias = saved
  # Computes y anew from x; else the forward pass would write it out.
  x, mean, root, g = materialize((x, mean, root, g))
  y = (x.astype(jnp.float32) - mean) * root
  g = g.astype(jnp.float32)
  rows = tuple(range(x.ndim - 1))
  dscale = None if scale is None else (g * y).sum(axis=rows)
  dbias = None if bias is None else g.sum(axis=rows)
  h = g if scale is None else g * scale
  dx = h - y * (h * y).mean(axis=-1, keepdims=True)
  dx = dx - h.mean(axis=-1, keepdims=True) if center else dx
  return (dx * root).astype(x.dtype), dscale, dbias


norm.defvjp(_norm_forward, _norm_backward)


def linear(
  x: Rows, kernel: Float[Array, 'D F'], bias: Vector, precision: str
) -> Float[Array, '*B F']:
  """Computes `reference.linear`."""
  kernel = kernel.astype(x.dtype)
  bias = None if bias is None else bias.astype(x.dtype)
  y = _rows(x.reshape(-1, x.shape[-1]), kernel, bias, precision)
  return y.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rows(x, kernel, bias, precision):
  """Computes `linear` of a matrix; all read its gradient in one shape."""
  y = jnp.matmul(x, kernel, precision=precision)
  return y if bias is None else y + bias


def _rows_forward(x, kernel, bias, precision):
  x = materialize(x)
  return _rows(x, kernel, bias, precision), (x, kernel, bias)


def _rows_backward(precision, saved, g):
  x, kernel, bias = saved
  product = functools.partial(jnp.matmul, precision=precision)
  g = materialize(g)
  if x.shape[1] <= g.shape[1]:
    dkernel = product(materialize(x.T), g)
  else:
    dkernel = materialize(product(materialize(g.T), x)).T
  dbias = None if bias is None else g.sum(axis=0)
  return product(g, kernel.T), dkernel, dbias


_rows.defvjp(_rows_forward, _rows_backward)


def project_out(
  o: Heads,
  h: Float[Array, 'B L N J'],
  kernel: Float[Array, 'N K+J D'],
  bias: Float[Array, ' D'],
  precision: str,
) -> Float[Array, 'B L D']:
  """Computes `reference.project_out` as the sum of two products."""
  cut, attn = o.shape[-1], kernel[:, : o.shape[-1]]
  o = materialize(jnp.swapaxes(o, 1, 2))
  y = _project_units(o, attn, None, precision)
  return y + _project_units(h, kernel[:, cut:], bias, precision)


def _project_units(h, kernel, bias, precision):
  h = h.reshape(*h.shape[:2], -1)
  return linear(h, kernel.reshape(-1, kernel.shape[-1]), bias, precision)
