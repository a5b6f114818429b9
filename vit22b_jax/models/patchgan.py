"""Discriminators that judge patches of an image: `build(name)`.

    >>> import jax
    >>> model = build('patchgan70')
    >>> images = jnp.zeros((2, 256, 256, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> jax.eval_shape(model.apply, params, images).shape
    (2, 30, 30, 1)

Each score is of one patch, as large as the score's receptive field: 70 px for
the PatchGAN of arXiv:1611.07004, section 3.2, that CycleGAN takes, 94 px for
the small one that the authors of "Deeper Inside Deep ViT" released.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import convolutions, kernels


@dataclasses.dataclass(frozen=True)
class Preset:
  """The properties of a named discriminator's 4x4 convolutions.

  The last, apart from these, has one channel, stride 1 and a pad of 1.
  """

  features: tuple[int, ...]  # channels
  strides: tuple[int, ...]
  pad: int  # zeros around the input
  normed: tuple[bool, ...]  # an instance norm follows
  sigmoid: bool  # scores are probabilities
  smallest: int  # side in pixels of the smallest image that gets a score


PRESETS = {
  'patchgan70': Preset(
    features=(64, 128, 256, 512),
    strides=(2, 2, 2, 1),
    pad=1,
    normed=(False, True, True, True),
    sigmoid=False,
    smallest=24,
  ),
  'released': Preset(
    features=(16, 32, 16, 3),
    strides=(2, 2, 2, 2),
    pad=2,
    normed=(True, True, True, True),
    sigmoid=True,
    smallest=2,
  ),
}


class PatchGAN(nn.Module, kw_only=True):
  """4x4 convolutions, each but the last with its norm and a leaky ReLU."""

  preset: Preset
  dtype: str = 'float32'  # of convolutions; parameters, norms, scores: float32
  precision: str = 'highest'

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B H2 W2 1']:
    """Scores patches of images in [-1, 1]; higher is more real."""
    conv = functools.partial(
      convolutions.Conv,
      kernel_size=4,
      dtype=self.dtype,
      precision=self.precision,
    )
    x, p = images, self.preset
    layers = zip(p.features, p.strides, p.normed, strict=True)
    for i, (features, strides, normed) in enumerate(layers):
      how = {'strides': strides, 'pad': p.pad, 'name': f'conv_{i}'}
      x = conv(features=features, **how)(x)
      x = kernels.instance_norm(x) if normed else x
      x = nn.leaky_relu(x, 0.2)
    x = conv(features=1, pad=1, name=f'conv_{len(p.features)}')(x)
    x = x.astype(jnp.float32)
    return nn.sigmoid(x) if p.sigmoid else x


def build(name: str, **fields: str) -> PatchGAN:
  """Returns a discriminator of PRESETS; `fields`: `dtype`, `precision`."""
  return PatchGAN(preset=PRESETS[name], **fields)
