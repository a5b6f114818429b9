"""The ViTUnet that treats tokens as the grid they are."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import (
  axes,
  convolutions,
  embeddings,
  ops,
  resnet_generator,
  stages,
)

Maps = Float[Array, 'B H W C']
CONTRAST = 0.9


def double(x: Maps) -> Maps:
  """Each pixel as 2 x 2."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


class SpatialViTUnet(stages.Staged, kw_only=True):
  """ViTUnet."""

  narrowest = 1
  cells = 8

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> Float[Array, 'B H W 3']:
    """Translates images."""
    x, maps = self._stem(images)
    b, h, w, d = x.shape
    x = x.reshape(b, h * w, d)
    x = self.make_norm('embedding_norm')(x)
    x = embeddings.Positions('sincos', self.init_kind)(x, (h, w))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    skips = []
    for i in range(3):
      x = self.stage(f'encoder_{i}')(x, train)
      skips.append(x)
      x = self._conv(self.width, f'merge_{i}', strides=2)(x.reshape(b, h, w, d))
      h, w = h // 2, w // 2
      x = self.make_norm(f'merge_{i}_norm')(x.reshape(b, h * w, d))
    x = self.stage('middle')(x, train)
    for i in range(3):
      x = double(x.reshape(b, h, w, d))
      h, w = h * 2, w * 2
      x = jnp.concatenate([skips.pop(), x.reshape(b, h * w, d)], axis=-1)
      x = self._linear(x, d, f'fuse_{i}')
      x = self.stage(f'decoder_{i}')(x, train)
    return self._head(x.reshape(b, h, w, d), maps, images)

  def _channels(self) -> list[int]:
    sizes = [2**i for i in range(self.patch_size.bit_length())]
    return [max(16, self.width * s // self.patch_size) for s in sizes]

  def _conv(self, features, name, **fields):
    fields = {'kernel_size': 3, 'pad': 1, 'pad_mode': 'reflect', **fields}
    return convolutions.Conv(
      features=features,
      dtype=self.dtype,
      precision=self.precision,
      name=name,
      **fields,
    )

  def _linear(self, x, features, name):
    size = x.shape[-1]
    names = (axes.CHANNELS_IN, axes.EMBED)
    weights = self.projection(name, (size, features), names, size, (features,))
    return ops.linear(x, *weights, self.precision)

  def _stem(self, images):
    channels = self._channels()
    init = nn.initializers.normal((9 * 3) ** -0.5)
    x = nn.relu(self._conv(channels[0], 'stem_0', kernel_init=init)(images))
    maps = [x]
    for i, c in enumerate(channels[1:-1], 1):
      x = self._conv(c, f'stem_{i}', strides=2, use_bias=False)(x)
      x = resnet_generator.norm_relu(x)
      maps.append(x)
    x = self._conv(self.width, 'patch_embedding', strides=2)(x)
    return x, maps

  def _head(self, x, maps, images):
    channels = self._channels()
    for i in reversed(range(len(maps))):
      c = channels[i]
      x = double(self._linear(x, c, f'narrow_{i}'))
      x = jnp.concatenate([maps[i], x], axis=-1)
      x = self._conv(c, f'widen_{i}', use_bias=False)(x)
      x = resnet_generator.norm_relu(x)
    x = self._conv(3, 'to_pixels')(x).astype(jnp.float32)
    return jnp.tanh(jnp.arctanh(CONTRAST * images) + x)
