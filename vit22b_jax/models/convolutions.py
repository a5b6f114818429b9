"""Convolutions with PyTorch's conventions, transposed ones, instance norm.

Images and maps are NHWC; a kernel is [rows, columns, inputs I, outputs O], and
correlates, as everybody's does. Kernels start from N(0, 0.02) and biases from
zero unless told otherwise, as CycleGAN's do (arXiv:1703.10593, section 7.1).
How they are computed is decided when a function is traced: `cpu_convolutions`
holds what a CPU likes, XLA's own convolutions are best elsewhere.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import axes, backend, cpu_convolutions, inits

PAD_MODES = ('zero', 'reflect')
KERNEL_INIT = nn.initializers.normal(0.02)
_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def conv(
  x: Float[Array, 'B H W I'],
  kernel: Float[Array, 'h w I O'],
  *,
  strides: int = 1,
  pad: int = 0,
  pad_mode: str = 'zero',
  precision: str = 'default',
) -> Float[Array, 'B H2 W2 O']:
  """Correlation of x, padded on all four sides, with a kernel.

  https://pytorch.org/docs/stable/generated/torch.nn.Conv2d.html

  Args:
    x: maps; computed in their dtype.
    kernel: cast to that dtype.
    strides: step between windows, in both directions.
    pad: pixels added on each side; reflected ones need more pixels than that.
    pad_mode: 'zero' or 'reflect' (without repeating the edge).
    precision: of the products; below 'highest' a CPU may take Winograd's tiles
      for 3x3 kernels, with errors of 2e-6 of the largest output.

  Returns:
    Maps with H2 = (H + 2 pad - h) // strides + 1, and W2 likewise.
  """
  kernel = kernel.astype(x.dtype)
  if backend.on_cpu():
    exact = precision == 'highest'
    return cpu_convolutions.conv(x, kernel, strides, pad, pad_mode, exact)
  if pad_mode == 'reflect' and pad:
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode='reflect')
    pad = 0
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (strides, strides),
    ((pad, pad), (pad, pad)),
    dimension_numbers=_LAYOUT,
    precision=precision,
  )


def conv_transpose(
  x: Float[Array, 'B H W I'],
  kernel: Float[Array, 'h w I O'],
  *,
  strides: int,
  pad: int,
  output_pad: int,
  precision: str = 'default',
) -> Float[Array, 'B H2 W2 O']:
  """Each pixel adds its multiple of the kernel to pixels `strides` apart.

  The transpose, in x, of `conv` with these strides, pad and kernel (I and O
  exchanged); H2 = (H - 1) strides - 2 pad + h + output_pad.
  https://pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html

  Args:
    x: maps; computed in their dtype.
    kernel: cast to that dtype.
    strides: distance in the output of neighbours in the input.
    pad: pixels left out of the output on each side.
    output_pad: pixels of those put back below and on the right.
    precision: of the products.
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


def instance_norm(
  x: Float[Array, 'B H W C'], eps: float = 1e-5
) -> Float[Array, 'B H W C']:
  """(x - mean) / sqrt(variance + eps) over each image's H W, for each channel.

  In float32; no learned scale, no running statistics; biased variance.
  https://pytorch.org/docs/stable/generated/torch.nn.InstanceNorm2d.html
  """
  if backend.on_cpu():
    return cpu_convolutions.instance_norm(x, eps)
  y = x.astype(jnp.float32)
  y -= y.mean(axis=(1, 2), keepdims=True)
  y *= jax.lax.rsqrt(jnp.square(y).mean(axis=(1, 2), keepdims=True) + eps)
  return y.astype(x.dtype)


class _Convolution(nn.Module, kw_only=True):
  """The fields and parameters of both convolutions.

  Attributes:
    features: output channels O.
    kernel_size: rows, and columns, of the kernel.
    strides: see the functions.
    pad: see the functions.
    use_bias: whether a bias [O] is added.
    dtype: of products and result; parameters are float32.
    precision: of the products, 'default' or 'highest'.
    kernel_init: of the kernel; the bias starts at zero.
  """

  features: int
  kernel_size: int
  strides: int = 1
  pad: int = 0
  use_bias: bool = True
  dtype: str = 'float32'
  precision: str = 'default'
  kernel_init: inits.Initializer = KERNEL_INIT

  def _weights(self, inputs: int) -> tuple[Array, Array | None]:
    names = (None, None, axes.CHANNELS_IN, axes.CHANNELS)
    init = nn.with_logical_partitioning(self.kernel_init, names)
    shape = (self.kernel_size, self.kernel_size, inputs, self.features)
    kernel = self.param('kernel', init, shape, jnp.float32)
    if not self.use_bias:
      return kernel, None
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,))
    return kernel, self.param('bias', zeros, (self.features,), jnp.float32)

  def _run(self, function, x: Array) -> Array:
    kernel, bias = self._weights(x.shape[-1])
    y = function(
      x.astype(self.dtype),
      kernel,
      strides=self.strides,
      pad=self.pad,
      precision=self.precision,
    )
    y = y if bias is None else y + bias.astype(y.dtype)
    return nn.with_logical_constraint(y, (axes.BATCH, None, None, None))


class Conv(_Convolution, kw_only=True):
  """`conv` with a learned kernel [h, w, I, O] and bias [O].

  Attributes beyond those shared:
    pad_mode: 'zero' or 'reflect'.
  """

  pad_mode: str = 'zero'

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W I']) -> Float[Array, 'B H2 W2 O']:
    """Correlates maps with the kernel."""
    return self._run(functools.partial(conv, pad_mode=self.pad_mode), x)


class ConvTranspose(_Convolution, kw_only=True):
  """`conv_transpose` with a learned kernel [h, w, I, O] and bias [O].

  Attributes beyond those shared:
    output_pad: rows and columns added below and on the right.
  """

  output_pad: int = 0

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W I']) -> Float[Array, 'B H2 W2 O']:
    """Spreads each pixel of the maps over a window of the result."""
    spread = functools.partial(conv_transpose, output_pad=self.output_pad)
    return self._run(spread, x)
