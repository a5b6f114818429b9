"""The CycleGAN authors' generator: a residual network between convolutions.

    >>> import jax
    >>> model = ResNetGenerator(blocks=9)
    >>> images = jnp.zeros((2, 256, 256, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> jax.eval_shape(model.apply, params, images).shape
    (2, 256, 256, 3)

c7s1-64, d128, d256, R256 x blocks, u128, u64, c7s1-3 in the words of
arXiv:1703.10593, appendix 7.2, with instance norms without affine terms, so
that every convolution has a bias.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import convolutions, kernels

Maps = Float[Array, 'B H W C']


def norm_relu(x: Maps) -> Maps:
  """Applies instance norm and ReLU, as after all but the last convolution."""
  return nn.relu(kernels.instance_norm(x))


def check_size(height: int, width: int) -> None:
  """Raises UserError for images that the generator can't halve twice."""
  if height % 4 or width % 4 or min(height, width) < 8:
    raise errors.UserError(
      "model.generator='resnet' halves images twice, and reflects a border: "
      f'set data.image_size to a multiple of 4 from 8, not {height} x {width}.'
    )


class ResidualBlock(nn.Module):
  """x + n conv(relu(n conv(x))): 3x3 convolutions with reflected borders."""

  dtype: str = 'float32'
  precision: str = 'highest'

  @nn.compact
  def __call__(self, x: Maps) -> Maps:
    """Applies the block; the number of channels stays."""
    fields = {'features': x.shape[-1], 'kernel_size': 3, 'pad': 1}
    fields |= {'pad_mode': 'reflect'}
    fields |= {'dtype': self.dtype, 'precision': self.precision}
    conv = functools.partial(convolutions.Conv, **fields)
    y = norm_relu(conv(name='conv_0')(x))
    return x + kernels.instance_norm(conv(name='conv_1')(y))


class ResNetGenerator(nn.Module):
  """Translates images in [-1, 1], of sides that 4 divides, from 8 px."""

  blocks: int = 9  # the authors take 6 for 128 px
  width: int = 64  # channels of the first convolution
  dtype: str = 'float32'
  precision: str = 'highest'

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> Float[Array, 'B H W 3']:
    """Translates images, in training as in evaluation."""
    del train
    check_size(*images.shape[1:3])
    common = {'dtype': self.dtype, 'precision': self.precision}
    conv = functools.partial(convolutions.Conv, **common)
    ends = {'kernel_size': 7, 'pad': 3, 'pad_mode': 'reflect'}
    x = norm_relu(conv(features=self.width, name='conv_in', **ends)(images))
    half = {'kernel_size': 3, 'strides': 2, 'pad': 1}
    for i in range(2):
      features = self.width * 2 ** (i + 1)
      x = norm_relu(conv(features=features, name=f'down_{i}', **half)(x))
    for i in range(self.blocks):
      x = ResidualBlock(**common, name=f'residual_{i:02d}')(x)
    for i in range(2):
      up = convolutions.ConvTranspose(
        features=self.width * 2 ** (1 - i),
        output_pad=1,
        name=f'up_{i}',
        **half,
        **common,
      )
      x = norm_relu(up(x))
    x = conv(features=3, name='conv_out', **ends)(x)
    return jnp.tanh(x.astype(jnp.float32))
