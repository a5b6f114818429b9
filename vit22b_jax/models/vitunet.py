"""ViTUnet: an image-to-image generator over either block.

    params = model.init(key, images)['params']
    translated = model.apply({'params': params}, images)

Seven stages of depth/6 blocks each: three that encode, a middle, three that
decode, with a skip from each encoder to its decoder. `ViTUnet` is the released
generator of "Deeper Inside Deep ViT" (section 4.1).
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import (
  axes,
  blocks,
  convolutions,
  embeddings,
  layers,
  resnet_generator,
  stacking,
)


class Stage(layers.Transformer, kw_only=True):
  """Blocks of one form, `depth` of them one after another."""

  form: str
  depth: int

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B L D'], train: bool
  ) -> Float[Array, 'B L D']:
    """Applies the blocks."""
    for name in stacking.layer_names(self.depth):
      block = blocks.FORMS[self.form](**self.shared_fields(), name=name)
      x, _ = block(x, train)
    return x


class StagedGenerator(layers.Transformer, kw_only=True):
  """Fields of a generator of seven stages: three in, a middle, three out."""

  narrowest: ClassVar[int]  # width of the narrowest stage: width / narrowest
  cells: ClassVar[int]  # so many patches in a row become one

  image_size: tuple[int, int]  # height and width of its images in pixels
  patch_size: int  # side of a patch in pixels
  form: str  # 'sequential' or 'parallel' blocks
  depth: int  # six times the number of blocks of a stage

  @property
  def grid(self) -> tuple[int, int]:
    """The number of rows and columns of patches."""
    height, width = self.image_size
    return height // self.patch_size, width // self.patch_size

  def stage(self, name: str, divisor: int = 1) -> Stage:
    """Blocks with this fraction of the width and of the MLP."""
    fields = self.shared_fields()
    fields['width'] //= divisor
    fields['mlp_dim'] //= divisor
    return Stage(**fields, form=self.form, depth=self.depth // 6, name=name)

  def validate(self) -> None:
    """Raises UserError with the first rule that a shape breaks."""
    part, cells, heads = self.narrowest, self.cells, self.num_heads
    stage = f'width/{part}' if part > 1 else 'width'
    rules = [
      ('depth', self.depth, 6, 'each of its stages has depth/6 blocks'),
      ('width', self.width, part * heads, f'{heads} heads share {stage}'),
    ]
    divisor, reason = part, f'its narrowest stage has mlp_dim/{part}'
    if self.form == 'parallel':
      reason = f'{heads} heads share {stage.replace("width", "mlp_dim")}'
      divisor *= heads
    rules.append(('mlp_dim', self.mlp_dim, divisor, reason))
    for name, value, divisor, reason in rules:
      if value % divisor:
        raise errors.UserError(
          f'model.{name}={value} is not a multiple of {divisor}: in a ViTUnet '
          f'{reason}.'
        )
    unit = self.patch_size * cells
    for side in self.image_size:
      if side < 1 or side % unit:
        halved = f' whose grid halves to {cells} times less' * (cells > 1)
        raise errors.UserError(
          f'data.image_size={side} is not a multiple of {unit}: it is cut into '
          f'patches of model.patch_size={self.patch_size}{halved}.'
        )


class Cnn(nn.Module, kw_only=True):
  """Several images -> one, by 3x3 convolutions at full resolution.

  12-64-128, residual blocks, 64-3, tanh; borders are reflected.
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


class ViTUnet(StagedGenerator, kw_only=True):
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
    """Translates images of `image_size` in [-1, 1] to such ones.

    Training turns dropout on, which draws from the key 'dropout'.

    Raises:
      UserError: when the images have another size.
    """
    self.check_size(*images.shape[1:3])
    x = self.embed_patches(images, self.patch_size)
    positions = embeddings.Positions(
      'learned', self.init_kind, name='positions'
    )
    x = positions(x, self.grid)
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
    how = {'dtype': self.dtype, 'precision': self.precision}
    return Cnn(blocks=self.depth // 3, **how, name='cnn')(self._images(x))

  def check_size(self, height: int, width: int) -> None:
    """Raises UserError for images of another size than in training."""
    if (height, width) != self.image_size:
      raise errors.UserError(
        f'this generator translates images of {self.image_size[0]} x '
        f'{self.image_size[1]} pixels, whose patches it knows by position, not '
        f'{height} x {width}: resize them, or train with '
        "model.resample='space'."
      )

  def _images(self, x: Float[Array, 'B 4L D']) -> Float[Array, 'B H W 12']:
    """Turns four sets of tokens into four images, channels (image, color)."""
    p, (rows, columns) = self.patch_size, self.grid
    x = self.linear('to_pixels', x, p * p * 3, (axes.EMBED, axes.PATCH))
    x = x.reshape(len(x), 4, rows, columns, p, p, 3)
    x = x.transpose(0, 2, 4, 3, 5, 1, 6)
    return x.reshape(len(x), rows * p, columns * p, 12)
