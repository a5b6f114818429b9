"""The definitions of all operations, which GPUs and TPUs run as they are.

The docstrings here hold for `cpu` too; `kernels` explains the letters.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import remat

Rows = Float[Array, '*B D']
Heads = Float[Array, 'B N L K']
Map = Float[Array, 'B N L M']
Vector = Float[Array, ' D'] | None
Maps = Float[Array, 'B H W C']

INSTANCE_EPS = 1e-5  # of instance norms
_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def norm(
  x: Rows, scale: Vector, bias: Vector, eps: float, center: bool
) -> Rows:
  """Computes (x - mean) / sqrt(variance + eps) scale + bias by rows.

  In float32, with the variance as a mean of squared differences, since a stream
  with a large mean leaves nothing of a difference of squares. Without `center`
  the mean is left out everywhere (RMSNorm); scale and bias may be None.
  """
  y, _, _ = normalize(x, eps, center)
  y = y if scale is None else y * scale
  y = y if bias is None else y + bias
  return y.astype(x.dtype)


def normalize(
  x: Rows, eps: float, center: bool
) -> tuple[Rows, Array, Float[Array, '*B 1']]:
  """Returns float32 rows of mean 0 and variance 1, their means and factors."""
  y = x.astype(jnp.float32)
  mean = y.mean(axis=-1, keepdims=True) if center else jnp.zeros(())
  y -= mean
  root = jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + eps)
  return y * root, mean, root


def gelu(x: Rows) -> Rows:
  """Computes the exact GELU, x P(a standard normal number < x).

  By erf, which costs a CPU half of the erfc in `jax.nn.gelu`; in float32, since
  1 + erf loses all digits of a half precision for negative x.
  """
  y = x.astype(jnp.float32)
  y = 0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))
  return y.astype(x.dtype)


def linear(
  x: Rows, kernel: Float[Array, 'D F'], bias: Vector, precision: str
) -> Float[Array, '*B F']:
  """Computes x W + b."""
  kernel = kernel.astype(x.dtype)
  bias = None if bias is None else bias.astype(x.dtype)
  y = jnp.matmul(x, kernel, precision=precision)
  return y if bias is None else y + bias


def project_out(
  o: Heads,
  h: Float[Array, 'B L N J'],
  kernel: Float[Array, 'N K+J D'],
  bias: Float[Array, ' D'],
  precision: str,
) -> Float[Array, 'B L D']:
  """Computes the fused output projection of the ViT-22B block.

  `o` is attended values, `h` the MLP's hidden units after the GELU; the kernel
  has every head's [attention, mlp] rows.
  """
  y = jnp.concatenate([jnp.swapaxes(o, 1, 2), h], axis=-1)
  kernel = kernel.astype(y.dtype)
  y = jnp.einsum('blne,ned->bld', y, kernel, precision=precision)
  return y + bias.astype(y.dtype)


def attention(
  q: Heads, k: Heads, v: Heads, scale: float, precision: str
) -> tuple[Heads, Map, Map]:
  """Computes softmax(scale q k^T) v, with logits and softmax in float32.

  Logits and attention map, returned too, cost nothing when nobody uses them.
  """
  logits = jnp.einsum(
    'bnlk,bnmk->bnlm',
    q * jnp.asarray(scale, q.dtype),
    k,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  logits = remat.named(logits, remat.LOGITS)
  weights = jax.nn.softmax(logits, axis=-1)
  o = jnp.einsum(
    'bnlm,bnmk->bnlk', weights.astype(v.dtype), v, precision=precision
  )
  return o, logits, weights


def pad_reflect(x: Maps, pad: int) -> Maps:
  """Adds `pad` reflected pixels on each side, without repeating the edge."""
  sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  return jnp.pad(x, sides, mode='reflect')


def conv(
  x: Maps,
  kernel: Float[Array, 'h w I O'],
  *,
  strides: int = 1,
  pad: int = 0,
  pad_mode: str = 'zero',
  precision: str = 'default',
) -> Maps:
  """Correlates x, padded on all four sides, with a kernel.

  https://pytorch.org/docs/stable/generated/torch.nn.Conv2d.html

  Args:
    x: maps [B, H, W, I]; computed in their dtype.
    kernel: cast to that dtype.
    strides: step between windows, in both directions.
    pad: pixels added on each side; reflected ones need more pixels than that.
    pad_mode: 'zero' or 'reflect' (without repeating the edge).
    precision: of the products; below 'highest' a CPU may take Winograd's tiles
      for 3x3 kernels, with errors of 2e-6 of the largest output.
  """
  kernel = kernel.astype(x.dtype)
  if pad_mode == 'reflect' and pad:
    x, pad = pad_reflect(x, pad), 0
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (strides, strides),
    ((pad, pad), (pad, pad)),
    dimension_numbers=_LAYOUT,
    precision=precision,
  )


def conv_transpose(
  x: Maps,
  kernel: Float[Array, 'h w I O'],
  *,
  strides: int,
  pad: int,
  output_pad: int,
  precision: str = 'default',
) -> Maps:
  """Adds each pixel's multiple of the kernel to pixels `strides` apart.

  The transpose, in x, of `conv` with these strides, pad and kernel (I and O
  exchanged).
  https://pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html

  `pad` pixels are left out on each side, `output_pad` of those put back below
  and on the right: H2 = (H - 1) strides - 2 pad + h + output_pad.
  """
  rows, columns = kernel.shape[:2]
  return jax.lax.conv_general_dilated(
    x,
    jnp.flip(kernel, (0, 1)).astype(x.dtype),
    (1, 1),
    [(n - 1 - pad, n - 1 - pad + output_pad) for n in (rows, columns)],
    lhs_dilation=(strides, strides),
    dimension_numbers=_LAYOUT,
    precision=precision,
  )


def instance_norm(x: Maps) -> Maps:
  """Computes (x - mean) / sqrt(variance + 1e-5) over each channel's H W.

  In float32; no learned scale, no running statistics; biased variance.
  https://pytorch.org/docs/stable/generated/torch.nn.InstanceNorm2d.html
  """
  y = x.astype(jnp.float32)
  y -= y.mean(axis=(1, 2), keepdims=True)
  y *= jax.lax.rsqrt(
    jnp.square(y).mean(axis=(1, 2), keepdims=True) + INSTANCE_EPS
  )
  return y.astype(x.dtype)
