"""ViTUnet over space (`model.resample='space'`): tokens stay a grid."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import (
  axes,
  convolutions,
  embeddings,
  kernels,
  resnet_generator,
  vitunet,
)

Maps = Float[Array, 'B H W C']

# An output begins near this times its input: tanh leaves room on both sides.
_CONTRAST = 0.9
_FEWEST_CHANNELS = 16
_CHANNELS = (axes.CHANNELS_IN, axes.CHANNELS)


def repeat(x: Maps) -> Maps:
  """Repeats each pixel as 2 x 2."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


class SpatialViTUnet(vitunet.StagedGenerator, kw_only=True):
  """A U-net of transformer blocks in a U-net of convolutions.

  The released ViTUnet pastes images from patches, each decoded apart from its
  neighbors, and it shows. Here nothing is cut:

  - Convolutions of 3x3 with overlapping windows halve the image until a pixel
    stands for a patch (so patch sizes are powers of two).
  - Between stages a strided 3x3 convolution merges 2x2 tokens into one, and on
    the way up each token becomes 2x2 again, joined along the channels with the
    skip and fused by a matrix. The width stays; of L tokens the middle has
    L/64, and sees the whole image at once.
  - Convolutions double the maps until a pixel is one again, each joined with
    the map of the same size from the way down: what is finer than a patch never
    passes through a token.
  - The result is tanh(artanh(0.9 image) + change): it is the change that is
    learned. It begins small.

  Fixed positions (sines and cosines) and convolutions know no image size, so
  images of any size that the grid divides are translated.

  Of these parts `embed`, `double`, `activate` and `result` are methods of their
  own, for experiments/spatial_parts to exchange.
  """

  narrowest = 1
  cells = 8

  def validate(self) -> None:
    """Also validates the power of two, and the width for positions."""
    super().validate()
    if self.patch_size < 2 or self.patch_size.bit_count() != 1:
      raise errors.UserError(
        f'model.patch_size={self.patch_size} is not a power of two from 2, as '
        "model.resample='space' halves images until a pixel stands for a patch."
      )
    embeddings.sincos_2d(1, 1, self.width)

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> Float[Array, 'B H W 3']:
    """Translates images in [-1, 1], of any size that 8 patches divide.

    Training turns dropout on, which draws from the key 'dropout'.

    Raises:
      UserError: for another size.
    """
    self.check_size(*images.shape[1:3])
    maps = self._stem(images)
    x = self.embed(images, maps)
    b, h, w, d = x.shape
    x = self.make_norm('embedding_norm')(x.reshape(b, h * w, d))
    positions = embeddings.Positions('sincos', self.init_kind, name='positions')
    x = positions(x, (h, w))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    skips = []
    for i in range(3):
      x = self.stage(f'encoder_{i}')(x, train)
      skips.append(x.reshape(b, h, w, d))
      x = self._conv(d, f'merge_{i}', strides=2)(skips[-1])
      h, w = h // 2, w // 2
      x = self.make_norm(f'merge_{i}_norm')(x.reshape(b, h * w, d))
    x = self.stage('middle')(x, train)
    for i in range(3):
      x = repeat(x.reshape(b, h, w, d))
      h, w = 2 * h, 2 * w
      x = jnp.concatenate([skips.pop(), x], axis=-1)
      x = self.linear(f'fuse_{i}', x.reshape(b, h * w, 2 * d), d, _CHANNELS)
      x = self.stage(f'decoder_{i}')(x, train)
    x = self.make_norm('final_norm')(x)
    return self.result(images, self._head(x.reshape(b, h, w, d), maps))

  def embed(self, images: Float[Array, 'B H W 3'], maps: list[Maps]) -> Maps:
    """Returns tokens as a map, by overlapping windows of the smallest map."""
    del images
    return self._conv(self.width, 'patch_embedding', strides=2)(maps[-1])

  def double(self, x: Maps, features: int, name: str) -> Maps:
    """Returns a map of twice the height and width, on the way to the image."""
    return repeat(self.linear(name, x, features, _CHANNELS, bias=False))

  def activate(self, x: Maps) -> Maps:
    """Applies norm and ReLU to a map on the way to the image.

    Each pixel is normalized by itself, since an instance norm would take out
    what tokens have in common, such as the light of the whole image.
    """
    return nn.relu(kernels.norm(x, None, None, 1e-5, True))

  def result(
    self, images: Float[Array, 'B H W 3'], change: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B H W 3']:
    """Returns images in [-1, 1], which begin near those given."""
    return jnp.tanh(jnp.arctanh(_CONTRAST * images) + change)

  def check_size(self, height: int, width: int) -> None:
    """Raises UserError for images that the grid doesn't divide."""
    unit = self.patch_size * self.cells
    if height % unit or width % unit:
      raise errors.UserError(
        f'this generator translates images whose sides are multiples of {unit} '
        f'({self.cells} patches of {self.patch_size}), not {height} x {width} '
        'pixels: resize or crop them.'
      )

  def _channels(self) -> list[int]:
    """Returns channels of maps at 1, 1/2, ... down to above a patch's size."""
    p = self.patch_size
    sizes = [2**i for i in range(p.bit_length() - 1)]
    return [max(_FEWEST_CHANNELS, self.width * s // p) for s in sizes]

  def _conv(self, features: int, name: str, **fields) -> convolutions.Conv:
    return convolutions.Conv(
      features=features,
      kernel_size=3,
      pad=1,
      pad_mode='reflect',
      dtype=self.dtype,
      precision=self.precision,
      name=name,
      **fields,
    )

  def _stem(self, images: Float[Array, 'B H W 3']) -> list[Maps]:
    """Returns the maps of finer detail than a patch, the largest first.

    The first map isn't normalized, for color and contrast would be lost.
    """
    first, *others = self._channels()
    init = nn.initializers.normal((3 * 9) ** -0.5)
    maps = [nn.relu(self._conv(first, 'stem_0', kernel_init=init)(images))]
    for i, features in enumerate(others, 1):
      x = self._conv(features, f'stem_{i}', strides=2, use_bias=False)(maps[-1])
      maps.append(resnet_generator.norm_relu(x))
    return maps

  def _head(self, x: Maps, maps: list[Maps]) -> Float[Array, 'B H W 3']:
    """Computes the change from tokens, joined with ever larger maps."""
    for i, skip in reversed(list(enumerate(maps))):
      features = skip.shape[-1]
      x = self.double(x, features, f'narrow_{i}')
      x = jnp.concatenate([skip, x], axis=-1)
      x = self.activate(self._conv(features, f'join_{i}')(x))
    return self._conv(3, 'to_pixels')(x).astype(jnp.float32)
