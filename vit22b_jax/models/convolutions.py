"""Convolutions with PyTorch's conventions, and transposed ones, as modules.

Images and maps are NHWC; a kernel is [rows, columns, inputs I, outputs O].
Kernels start from N(0, 0.02) and biases from zero unless told otherwise, as
CycleGAN's do (arXiv:1703.10593, section 7.1).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import axes, inits, kernels


class _Convolution(nn.Module, kw_only=True):
  """The fields and parameters of both convolutions: see `kernels`."""

  features: int
  kernel_size: int  # rows, and columns
  strides: int = 1
  pad: int = 0  # pixels on each side
  use_bias: bool = True
  dtype: str = 'float32'  # of products and result; parameters are float32
  precision: str = 'default'  # or 'highest', of the products
  kernel_init: inits.Initializer = nn.initializers.normal(0.02)

  def _weights(self, inputs: int) -> tuple[Array, Array | None]:
    names = (None, None, axes.CHANNELS_IN, axes.CHANNELS)
    init = nn.with_logical_partitioning(self.kernel_init, names)
    shape = (self.kernel_size, self.kernel_size, inputs, self.features)
    kernel = self.param('kernel', init, shape, jnp.float32)
    if not self.use_bias:
      return kernel, None
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,))
    return kernel, self.param('bias', zeros, (self.features,), jnp.float32)

  def _run(self, function, x: Array, **how) -> Array:
    kernel, bias = self._weights(x.shape[-1])
    how |= {'strides': self.strides, 'pad': self.pad}
    y = function(x.astype(self.dtype), kernel, precision=self.precision, **how)
    y = y if bias is None else y + bias.astype(y.dtype)
    return nn.with_logical_constraint(y, (axes.BATCH, None, None, None))


class Conv(_Convolution, kw_only=True):
  """`kernels.conv` with a learned kernel [h, w, I, O] and bias [O]."""

  pad_mode: str = 'zero'  # or 'reflect'

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W I']) -> Float[Array, 'B H2 W2 O']:
    """Correlates maps with the kernel."""
    return self._run(kernels.conv, x, pad_mode=self.pad_mode)


class ConvTranspose(_Convolution, kw_only=True):
  """`kernels.conv_transpose` with a learned kernel and bias, as `Conv`."""

  output_pad: int = 0  # rows and columns added below and on the right

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W I']) -> Float[Array, 'B H2 W2 O']:
    """Spreads each pixel of the maps over a window of the result."""
    return self._run(kernels.conv_transpose, x, output_pad=self.output_pad)
