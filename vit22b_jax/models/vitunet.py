"""ViTUnet: an image-to-image generator over either block; and `build`.

    params = model.init(key, images)['params']
    translated = model.apply({'params': params}, images)

    >>> import jax
    >>> model = build('released', 'S', image_size=256, patch_size=32)
    >>> images = jnp.zeros((2, 256, 256, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> sum(x.size for x in jax.tree.leaves(params))
    13086083

Seven stages of depth/6 blocks each: three that encode, a middle, three that
decode, with a skip from each encoder to its decoder. `ViTUnet` is what the
authors of "Deeper Inside Deep ViT" released (section 4.1), `resample='space'`
is `vitunet_space.SpatialViTUnet`.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import (
  axes,
  blocks,
  convolutions,
  embeddings,
  ops,
  resnet_generator,
  stages,
  vit,
  vitunet_space,
)

# Fields of a classifier that a generator lacks.
_CLASSIFIER = {'form', 'fused_output', 'final_norm', 'head'}


class Cnn(nn.Module, kw_only=True):
  """Several images -> one, by 3x3 convolutions at full resolution.

  12-64-128, residual blocks, 64-3, tanh; borders are reflected.

  Attributes:
    blocks: number of residual blocks.
    dtype: of the convolutions.
    precision: of the convolutions, 'highest' or 'default'.
  """

  blocks: int
  dtype: str
  precision: str

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C']) -> Float[Array, 'B H W 3']:
    """Returns float32 in [-1, 1]."""
    common = {'dtype': self.dtype, 'precision': self.precision}
    conv = functools.partial(
      convolutions.Conv, kernel_size=3, pad=1, pad_mode='reflect', **common
    )
    norm_relu = resnet_generator.norm_relu
    x = norm_relu(conv(features=64, name='conv_0')(x))
    x = norm_relu(conv(features=128, name='conv_1')(x))
    for i in range(self.blocks):
      block = resnet_generator.ResidualBlock
      x = block(**common, name=f'residual_{i:02d}')(x)
    x = norm_relu(conv(features=64, name='conv_2')(x))
    x = conv(features=3, name='conv_3')(x)
    return jnp.tanh(x.astype(jnp.float32))


class ViTUnet(stages.Staged, kw_only=True):
  """The released generator, which resamples the channels.

  Its stages have widths D, D/2, D/4, D/8, D/4, D/2, D (and MLPs in proportion)
  and the same number of heads. Between stages the channel axis is resampled to
  the nearest, every second channel kept or each one doubled, and a skip's
  tokens go in front of the decoder's: L tokens become 2L, 3L, 4L, which end as
  four images side by side in the channels of a CNN.
  """

  narrowest = 8
  cells = 1

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> Float[Array, 'B H W 3']:
    """Translates images.

    Args:
      images: float32 in [-1, 1], of `image_size`.
      train: whether dropout (which draws from the key 'dropout') is on.

    Returns:
      float32 in [-1, 1], of the same size.

    Raises:
      UserError: when the images have another size.
    """
    self.check_size(*images.shape[1:3])
    x = self._embed(images)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    skips = []
    for i in range(3):
      x = self.stage(f'encoder_{i}', 2**i)(x, train)
      skips.append(x)
      x = x[..., ::2]
    x = self.stage('middle', 8)(x, train)
    for i in range(3):
      x = jnp.concatenate([skips.pop(), x.repeat(2, axis=-1)], axis=1)
      x = self.stage(f'decoder_{i}', 4 // 2**i)(x, train)
    cnn = Cnn(
      blocks=self.depth // 3,
      dtype=self.dtype,
      precision=self.precision,
      name='cnn',
    )
    return cnn(self._images(x))

  def check_size(self, height: int, width: int) -> None:
    """Raises UserError for images of another size than in training."""
    if (height, width) != self.image_size:
      raise errors.UserError(
        f'this generator translates images of {self.image_size[0]} x '
        f'{self.image_size[1]} pixels, whose patches it knows by position, not '
        f'{height} x {width}: resize them, or train with '
        "model.resample='space'."
      )

  def _embed(self, images: Float[Array, 'B H W 3']) -> Float[Array, 'B L D']:
    size = self.patch_size**2 * images.shape[-1]
    names = (axes.PATCH, axes.EMBED)
    weights = self.projection(
      'patch_embedding', (size, self.width), names, size, (self.width,)
    )
    x = ops.patches(images, self.patch_size, self.dtype)
    x = ops.linear(x, *weights, self.precision)
    positions = embeddings.Positions(
      'learned', self.init_kind, name='positions'
    )
    return positions(x, self.grid)

  def _images(self, x: Float[Array, 'B 4L D']) -> Float[Array, 'B H W 12']:
    """Four images from four sets of tokens, as channels (image, colour)."""
    p, (rows, columns) = self.patch_size, self.grid
    names = (axes.EMBED, axes.PATCH)
    weights = self.projection(
      'to_pixels', (self.width, p * p * 3), names, self.width, (p * p * 3,)
    )
    x = ops.linear(x, *weights, self.precision)
    x = x.reshape(len(x), 4, rows, columns, p, p, 3)
    x = x.transpose(0, 2, 4, 3, 5, 1, 6)
    return x.reshape(len(x), rows * p, columns * p, 12)


_RESAMPLING = {'channels': ViTUnet, 'space': vitunet_space.SpatialViTUnet}


def build(
  block: str = 'vit22b',
  variant: str = 'S',
  *,
  image_size: int | tuple[int, int],
  patch_size: int,
  resample: str = 'channels',
  **overrides: Any,
) -> stages.Staged:
  """A generator from the names of a block and of a size.

  Args:
    block: a key of `vit.PRESETS`.
    variant: a key of `vit.VARIANTS`.
    image_size: side of a square image in pixels, or height and width.
    patch_size: height and width of a patch in pixels.
    resample: what stages resample: 'channels' (released) or 'space'.
    **overrides: any field of `blocks.Preset` that says something of blocks, of
      a variant, and `dropout`, `attention`, `dtype`, `precision`. None stands
      for the default.

  Raises:
    UserError: for unknown names and values, for impossible combinations, and
      for shapes that don't divide as the architecture has it.
  """
  errors.validate_choice('model.resample', resample, _RESAMPLING)
  preset = {field.name for field in dataclasses.fields(blocks.Preset)}
  known = (preset - _CLASSIFIER) | vit.VARIANTS['S'].keys()
  known |= {'dropout', 'attention', 'dtype', 'precision'}
  for name in overrides:
    errors.validate_choice('model key', name, sorted(known))
  # A classifier of the same fields, for its checks of each and of all.
  like = vit.build(
    block, variant, num_classes=1, patch_size=patch_size, **overrides
  )
  if isinstance(image_size, int):
    image_size = (image_size, image_size)
  model = _RESAMPLING[resample](
    **like.shared_fields(),
    image_size=tuple(image_size),
    patch_size=patch_size,
    form=like.form,
    depth=like.depth,
  )
  model.check()
  return model
