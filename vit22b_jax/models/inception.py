"""FID-Inception: Inception-v3 as TensorFlow published it on 2015-12-05.

    model = inception.Inception(taps=('64', '2048'))
    features = model.apply({'params': params}, images)['2048']

The network of the Frechet Inception distance (https://arxiv.org/abs/1706.08500)
isn't torchvision's: average pools leave the padding out of the mean, the last
block pools by maximum, and there are 1,008 classes. Each batch norm (eps 1e-3)
is folded into the convolution before it, see `fid.inception_weights`. Modules
have the names of the public PyTorch file. Products are in float32 at the
highest precision: FID compares second moments, in which TF32 passes show.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

SIZE = 299  # side of the images
TAPS = {'64': 64, '192': 192, '768': 768, '2048': 2048, 'logits': 1008}

Maps = Float[Array, 'B H W C']


class Inception(nn.Module):
  """Features of images at the depths asked for; nothing beyond is computed.

  Attributes:
    taps: names in TAPS: '64' (after the first max pool), '192' (after the
      second), '768' (before the last reduction) and '2048' (after the last
      block), all averaged over space, and 'logits'.
  """

  taps: tuple[str, ...] = ('2048',)

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B 299 299 3']
  ) -> dict[str, Float[Array, 'B _']]:
    """Returns float32 features by tap of RGB images in [0, 255]."""
    stages = (self._to_64, self._to_192, self._to_768, self._to_2048)
    last = max(list(TAPS).index(tap) for tap in self.taps)
    x = (images.astype(jnp.float32) - 128) / 128
    found = {}
    for tap, stage in zip(TAPS, stages[: last + 1], strict=False):
      x = stage(x)
      found[tap] = x.mean(axis=(1, 2))
    if 'logits' in self.taps:
      fc = nn.Dense(TAPS['logits'], precision='highest', name='fc')
      found['logits'] = fc(found['2048'])
    return {tap: found[tap] for tap in self.taps}

  def _to_64(self, x: Maps) -> Maps:  # [B, 299, 299, 3]
    x = Conv(32, (3, 3), 2, name='Conv2d_1a_3x3')(x)  # [B, 149, 149, 32]
    x = Conv(32, (3, 3), pad='VALID', name='Conv2d_2a_3x3')(x)
    # [B, 147, 147, 32]
    x = Conv(64, (3, 3), name='Conv2d_2b_3x3')(x)  # [B, 147, 147, 64]
    return _max_pool(x, 2)  # [B, 73, 73, 64]

  def _to_192(self, x: Maps) -> Maps:
    x = Conv(80, name='Conv2d_3b_1x1')(x)  # [B, 73, 73, 80]
    x = Conv(192, (3, 3), pad='VALID', name='Conv2d_4a_3x3')(x)
    # [B, 71, 71, 192]
    return _max_pool(x, 2)  # [B, 35, 35, 192]

  def _to_768(self, x: Maps) -> Maps:
    x = BlockA(32, name='Mixed_5b')(x)  # [B, 35, 35, 256]
    x = BlockA(64, name='Mixed_5c')(x)  # [B, 35, 35, 288]
    x = BlockA(64, name='Mixed_5d')(x)  # [B, 35, 35, 288]
    x = BlockB(name='Mixed_6a')(x)  # [B, 17, 17, 768]
    x = BlockC(128, name='Mixed_6b')(x)  # [B, 17, 17, 768]
    x = BlockC(160, name='Mixed_6c')(x)  # [B, 17, 17, 768]
    x = BlockC(160, name='Mixed_6d')(x)  # [B, 17, 17, 768]
    return BlockC(192, name='Mixed_6e')(x)  # [B, 17, 17, 768]

  def _to_2048(self, x: Maps) -> Maps:
    x = BlockD(name='Mixed_7a')(x)  # [B, 8, 8, 1280]
    x = BlockE('average', name='Mixed_7b')(x)  # [B, 8, 8, 2048]
    return BlockE('max', name='Mixed_7c')(x)  # [B, 8, 8, 2048]


class Conv(nn.Module):
  """A convolution with its batch norm folded in, and a ReLU.

  Attributes:
    pad: 'SAME', or 'VALID' (as for every stride of 2).
    average: average neighbors. The published graph does so before such a
      convolution (of one pixel); after it, it is the same with fewer channels.
  """

  features: int
  size: tuple[int, int] = (1, 1)
  stride: int = 1
  pad: str = 'SAME'
  average: bool = False

  @nn.compact
  def __call__(self, x: Maps) -> Maps:
    shape = (*self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.he_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    same = self.pad == 'SAME' and self.stride == 1
    x = _conv(x, kernel, self.stride, [n // 2 * same for n in self.size])
    if self.average:
      x = _average_pool(x)
    return nn.relu(x + bias)


def _chain(x: Maps, prefix: str, *convs: tuple) -> Maps:
  """Applies convolutions PREFIX_1, PREFIX_2, ... with these fields."""
  for i, fields in enumerate(convs, 1):
    x = Conv(*fields, name=f'{prefix}_{i}')(x)
  return x


class BlockA(nn.Module):
  """Four branches at 35 x 35."""

  pool_features: int

  @nn.compact
  def __call__(self, x: Maps) -> Maps:
    one = Conv(64, name='branch1x1')(x)
    five = _chain(x, 'branch5x5', (48,), (64, (5, 5)))
    three = _chain(x, 'branch3x3dbl', (64,), (96, (3, 3)), (96, (3, 3)))
    pool = Conv(self.pool_features, average=True, name='branch_pool')(x)
    return jnp.concatenate([one, five, three, pool], axis=-1)


class BlockB(nn.Module):
  """From 35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: Maps) -> Maps:
    three = Conv(384, (3, 3), 2, name='branch3x3')(x)
    double = _chain(x, 'branch3x3dbl', (64,), (96, (3, 3)), (96, (3, 3), 2))
    return jnp.concatenate([three, double, _max_pool(x, 2)], axis=-1)


class BlockC(nn.Module):
  """Four branches at 17 x 17, with kernels of 7 in one direction at a time."""

  width: int  # of the branches

  @nn.compact
  def __call__(self, x: Maps) -> Maps:
    c, across, down = self.width, (1, 7), (7, 1)
    one = Conv(192, name='branch1x1')(x)
    seven = _chain(x, 'branch7x7', (c,), (c, across), (192, down))
    convs = (c,), (c, down), (c, across), (c, down), (192, across)
    double = _chain(x, 'branch7x7dbl', *convs)
    pool = Conv(192, average=True, name='branch_pool')(x)
    return jnp.concatenate([one, seven, double, pool], axis=-1)


class BlockD(nn.Module):
  """From 17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: Maps) -> Maps:
    three = _chain(x, 'branch3x3', (192,), (320, (3, 3), 2))
    convs = (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)
    seven = _chain(x, 'branch7x7x3', *convs)
    return jnp.concatenate([three, seven, _max_pool(x, 2)], axis=-1)


class BlockE(nn.Module):
  """Branches at 8 x 8 that fork again."""

  pool: str  # 'average', or 'max' in the last block of the published graph

  @nn.compact
  def __call__(self, x: Maps) -> Maps:
    one = Conv(320, name='branch1x1')(x)
    three = _chain(x, 'branch3x3', (384,))
    double = _chain(x, 'branch3x3dbl', (448,), (384, (3, 3)))
    average = self.pool == 'average'
    pool = x if average else _max_pool(x, stride=1, pad=1)
    return jnp.concatenate(
      [
        one,
        Conv(384, (1, 3), name='branch3x3_2a')(three),
        Conv(384, (3, 1), name='branch3x3_2b')(three),
        Conv(384, (1, 3), name='branch3x3dbl_3a')(double),
        Conv(384, (3, 1), name='branch3x3dbl_3b')(double),
        Conv(192, average=average, name='branch_pool')(pool),
      ],
      axis=-1,
    )


def _conv(
  x: Maps, kernel: Float[Array, 'h w C F'], stride: int, pad: list[int]
) -> Maps:
  """Convolves in the form that XLA's CPU backend computes fastest.

  Kernels of one pixel, and wide ones with a stride, are products of matrices,
  in half of the time. FID's network has this one form on every backend.
  """
  if kernel.shape[:2] == (1, 1):
    return jnp.matmul(x, kernel[0, 0], precision='highest')
  if stride > 1 and x.shape[-1] > 3:  # 3 x 3, without padding
    return sum(
      jnp.matmul(part, kernel[row, column], precision='highest')
      for row, band in enumerate(_windows(x, 1, stride))
      for column, part in enumerate(_windows(band, 2, stride))
    )
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(p, p) for p in pad],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision='highest',
  )


def _windows(x: Maps, axis: int, stride: int) -> list[Maps]:
  """Returns the three entries of windows of three along an axis."""
  count = (x.shape[axis] - 3) // stride + 1
  last = (count - 1) * stride + 1
  return [lax.slice_in_dim(x, k, k + last, stride, axis=axis) for k in range(3)]


def _max_pool(x: Maps, stride: int, pad: int = 0) -> Maps:
  """3 x 3; in each direction on its own, six times as fast on a CPU."""
  edge = [(0, 0), (pad, pad), (pad, pad), (0, 0)]
  x = jnp.pad(x, edge, constant_values=-jnp.inf) if pad else x
  for axis in (1, 2):
    x = functools.reduce(jnp.maximum, _windows(x, axis, stride))
  return x


def _average_pool(x: Maps) -> Maps:
  """3 x 3, stride 1; at the border the mean of what lies inside."""
  count = [np.r_[2, np.full(n - 2, 3), 2] for n in x.shape[1:3]]
  x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
  for axis in (1, 2):
    x = sum(_windows(x, axis, 1))
  return x / jnp.asarray(np.outer(*count)[..., None], x.dtype)
