"""What both ViTUnets are made of: stages of blocks, and their fields."""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import blocks, stacking


class Stage(blocks.Transformer, kw_only=True):
  """Blocks one after another.

  Attributes beyond those of `blocks.Transformer`:
    form: 'sequential' or 'parallel' blocks.
    depth: number of blocks.
  """

  form: str
  depth: int

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B L D'], train: bool
  ) -> Float[Array, 'B L D']:
    """Applies the blocks."""
    for i in range(self.depth):
      name = stacking.block_name(i, self.depth)
      block = blocks.FORMS[self.form](**self.shared_fields(), name=name)
      x, _ = block(x, train)
    return x


class Staged(blocks.Transformer, kw_only=True):
  """Fields of a generator of seven stages: three in, a middle, three out.

  Attributes beyond those of `blocks.Transformer`:
    image_size: height and width of its images in pixels.
    patch_size: height and width of a patch in pixels.
    form: 'sequential' or 'parallel' blocks.
    depth: six times the number of blocks of a stage.
  """

  # What a subclass does with its fields: the narrowest stage's share of the
  # width, and how many patches in a row become one.
  narrowest: ClassVar[int]
  cells: ClassVar[int]

  image_size: tuple[int, int]
  patch_size: int
  form: str
  depth: int

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = self.image_size
    return height // self.patch_size, width // self.patch_size

  def stage(self, name: str, divisor: int = 1) -> Stage:
    """Blocks with this fraction of the width and of the MLP."""
    fields = self.shared_fields()
    fields['width'] //= divisor
    fields['mlp_dim'] //= divisor
    return Stage(**fields, form=self.form, depth=self.depth // 6, name=name)

  def check(self) -> None:
    """Judges shapes, which the parts would take for granted.

    Raises:
      UserError: with the rule that is broken.
    """
    part, cells, heads = self.narrowest, self.cells, self.num_heads
    stage = f'width/{part}' if part > 1 else 'width'
    rules = [
      ('depth', self.depth, 6, 'each of its stages has depth/6 blocks'),
      ('width', self.width, part * heads, f'{heads} heads share {stage}'),
    ]
    if self.form == 'parallel':
      reason = f'{heads} heads share {stage.replace("width", "mlp_dim")}'
      rules.append(('mlp_dim', self.mlp_dim, part * heads, reason))
    else:
      reason = f'its narrowest stage has mlp_dim/{part}'
      rules.append(('mlp_dim', self.mlp_dim, part, reason))
    for name, value, divisor, reason in rules:
      if value % divisor:
        raise errors.UserError(
          f'model.{name}={value} is not a multiple of {divisor}: in a ViTUnet '
          f'{reason}.'
        )
    for side in self.image_size:
      if side < 1 or side % (self.patch_size * cells):
        halved = (
          f' whose grid halves to {cells} times less' if cells > 1 else ''
        )
        raise errors.UserError(
          f'data.image_size={side} is not a multiple of '
          f'{self.patch_size * cells}: it is cut into patches of '
          f'model.patch_size={self.patch_size}{halved}.'
        )
