"""How projections and attention are multiplied out: pure functions of arrays.

Parameter layouts are fixed by `blocks.py`; which product of these arrays a
backend likes best is decided here and nowhere else, when a function is traced
(`cpu` holds what only a CPU likes). `B L D` are batch, tokens and width, `N K`
heads and head size, `J = F/N` a head's share of the MLP, and `E = 3K + J` a
head's slice [q, k, v, mlp] of a fused input projection. Every function computes
in the dtype of its first argument.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import backend, cpu, memory

Heads = Float[Array, 'B N L K']
Qkv = tuple[Heads, Heads, Heads]


def norm(
  x: Float[Array, '*B D'],
  scale: Float[Array, ' D'] | None,
  bias: Float[Array, ' D'] | None,
  eps: float,
  centre: bool,
) -> Float[Array, '*B D']:
  """(x - mean) / sqrt(variance + eps) scale + bias over the last axis.

  In float32, with the variance as a mean of squared differences, since a stream
  with a large mean leaves nothing of a difference of squares.

  Args:
    x: tokens; the result has its dtype.
    scale: None for 1.
    bias: None for 0.
    eps: added to the variance.
    centre: False leaves the mean out everywhere (RMSNorm).
  """
  if backend.on_cpu():
    return cpu.norm(x, scale, bias, eps, centre)
  return cpu.norm_forward(x, scale, bias, eps, centre)[0]


def gelu(x: Float[Array, '*B']) -> Float[Array, '*B']:
  """The exact GELU, x P(a standard normal number < x).

  erf as it is costs a CPU half of the erfc that `jax.nn.gelu` uses; in float32,
  since 1 + erf loses all digits of a half precision for negative x.
  """
  y = x.astype(jnp.float32)
  y = 0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))
  return y.astype(x.dtype)


def linear(
  x: Float[Array, '*B D'],
  kernel: Float[Array, 'D F'],
  bias: Float[Array, ' F'] | None,
  precision: str,
) -> Float[Array, '*B F']:
  """x W + b."""
  kernel = kernel.astype(x.dtype)
  bias = None if bias is None else bias.astype(x.dtype)
  if backend.on_cpu():
    return cpu.linear(x, kernel, bias, precision)
  y = jnp.matmul(x, kernel, precision=precision)
  return y if bias is None else y + bias


def project_heads_in(
  x: Float[Array, 'B L D'],
  kernel: Float[Array, 'D N E'],
  bias: Float[Array, 'N E'] | None,
  parts: int,
  precision: str,
) -> tuple[Heads, ...]:
  """`parts` equal slices of each head's columns, as queries, keys, values."""
  if backend.on_cpu():
    bias = None if bias is None else bias.reshape(-1)
    y = linear(x, kernel.reshape(len(kernel), -1), bias, precision)
    y = jnp.split(y.reshape(*x.shape[:2], *kernel.shape[1:]), parts, axis=-1)
    return tuple(cpu.hold(jnp.swapaxes(t, 1, 2)) for t in y)
  kernel = kernel.astype(x.dtype)
  y = jnp.einsum('bld,dne->bnle', x, kernel, precision=precision)
  if bias is not None:
    y += bias.astype(x.dtype)[:, None, :]
  return tuple(jnp.split(y, parts, axis=-1))


def project_in(
  x: Float[Array, 'B L D'],
  kernel: Float[Array, 'D N E'],
  bias: Float[Array, 'N _'],
  head_dim: int,
  precision: str,
) -> tuple[Qkv, Float[Array, 'B L N J']]:
  """Fused input projection of the ViT-22B block.

  Args:
    x: normalised tokens.
    kernel: every head's [q, k, v, mlp] columns.
    bias: of the MLP's J columns, or of all E.
    head_dim: K.
    precision: of the products.

  Returns:
    q, k, v [B, N, L, K], and the MLP's hidden units before the GELU.
  """
  (d, n, e), cut = kernel.shape, 3 * head_dim
  if backend.on_cpu():  # two products: attention's, and the MLP's
    mlp_kernel = kernel[:, :, cut:].reshape(d, n * (e - cut))
    mlp_bias = bias[:, cut - e :].reshape(-1)
    h = linear(x, mlp_kernel, mlp_bias, precision)
    qkv_bias = bias[:, :cut] if bias.shape[1] == e else None
    qkv = project_heads_in(x, kernel[:, :, :cut], qkv_bias, 3, precision)
    return qkv, h.reshape(*h.shape[:-1], n, e - cut)
  # Two products, so that either can be computed again without the other.
  qkv_kernel, mlp_kernel = jnp.split(kernel, [cut], axis=-1)
  qkv_bias = bias[:, :cut] if bias.shape[1] == e else None
  qkv = project_heads_in(x, qkv_kernel, qkv_bias, 3, precision)
  mlp_kernel = mlp_kernel.astype(x.dtype)
  h = jnp.einsum('bld,dne->blne', x, mlp_kernel, precision=precision)
  return qkv, h + bias[:, cut - e :].astype(x.dtype)


def project_heads_out(
  o: Heads,
  kernel: Float[Array, 'N K D'],
  bias: Float[Array, ' D'] | None,
  precision: str,
) -> Float[Array, 'B L D']:
  """Output projection of attention."""
  if backend.on_cpu():
    o = cpu.hold(jnp.swapaxes(o, 1, 2))
    return project_units(o, kernel, bias, precision)
  kernel = kernel.astype(o.dtype)
  y = jnp.einsum('bnlk,nkd->bld', o, kernel, precision=precision)
  return y if bias is None else y + bias.astype(o.dtype)


def project_units(
  h: Float[Array, 'B L N J'],
  kernel: Float[Array, 'N J D'],
  bias: Float[Array, ' D'] | None,
  precision: str,
) -> Float[Array, 'B L D']:
  """Output projection of an MLP whose hidden units are grouped by head."""
  h = h.reshape(*h.shape[:2], -1)
  return linear(h, kernel.reshape(-1, kernel.shape[-1]), bias, precision)


def project_out(
  o: Heads,
  h: Float[Array, 'B L N J'],
  kernel: Float[Array, 'N K+J D'],
  bias: Float[Array, ' D'],
  precision: str,
) -> Float[Array, 'B L D']:
  """Fused output projection of the ViT-22B block: Attn(y) + MLP(y).

  Args:
    o: attended values of every head.
    h: the MLP's hidden units after the GELU.
    kernel: every head's [attention, mlp] rows.
    bias: the sum of the two projections' biases.
    precision: of the products.
  """
  if backend.on_cpu():  # two products, as on the way in
    cut = o.shape[-1]
    y = project_heads_out(o, kernel[:, :cut], None, precision)
    return y + project_units(h, kernel[:, cut:], bias, precision)
  y = jnp.concatenate([jnp.swapaxes(o, 1, 2), h], axis=-1)
  kernel = kernel.astype(y.dtype)
  y = jnp.einsum('blne,ned->bld', y, kernel, precision=precision)
  return y + bias.astype(y.dtype)


def attention(
  q: Heads, k: Heads, v: Heads, scale: float, precision: str
) -> tuple[Heads, Float[Array, 'B N L M'], Float[Array, 'B N L M']]:
  """softmax(scale q k^T) v, with logits and softmax in float32.

  Returns:
    Attended values, and the float32 logits and attention map (which jit
    removes when nobody uses them).
  """
  logits = jnp.einsum(
    'bnlk,bnmk->bnlm',
    q * jnp.asarray(scale, q.dtype),
    k,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  logits = memory.named(logits, memory.LOGITS)
  weights = jax.nn.softmax(logits, axis=-1)
  o = jnp.einsum(
    'bnlm,bnmk->bnlk', weights.astype(v.dtype), v, precision=precision
  )
  return o, logits, weights


def flash_attention(q: Heads, k: Heads, v: Heads, scale: float) -> Heads:
  """Attention by cuDNN, which never stores the attention map.

  Raises:
    UserError: when there is no GPU or the dtype is not a half precision.
  """
  if backend.name() != 'gpu':
    raise errors.UserError(
      "model.attention='cudnn' needs an NVIDIA GPU, and this process runs on "
      f"{backend.name()}: use 'xla'."
    )
  q, k, v = (jnp.swapaxes(t, 1, 2) for t in (q, k, v))
  o = jax.nn.dot_product_attention(q, k, v, scale=scale, implementation='cudnn')
  return jnp.swapaxes(o, 1, 2)


def patches(
  images: Float[Array, 'B H W C'], size: int, dtype: DTypeLike
) -> Float[Array, 'B L P']:
  """Non-overlapping patches, row by row, each flattened as (row, column, C)."""
  b, height, width, c = images.shape
  x = images.astype(dtype)
  x = x.reshape(b, height // size, size, width // size, size, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, -1, size * size * c)
