"""The generator that a config's `model` section asks for.

model = generators.build(config.model.to_dict(), image_size=256)
"""

from typing import Any

import flax.linen as nn

from vit22b_jax import errors
from vit22b_jax.models import resnet_generator, vit, vitunet, vitunet_space

GENERATORS = ('vitunet', 'resnet')
RESNET = ('blocks', 'width', 'dtype', 'precision')
# Keys that are always set, and that say nothing of a ResNet.
IDLE = ('block', 'variant', 'patch_size', 'resample', 'dropout', 'attention')


def build(
  model_section: dict[str, Any], image_size: int | tuple[int, int]
) -> nn.Module:
  """A generator: `vitunet.build` or `resnet_generator.build`.

  Args:
    model_section: `generator` ('vitunet' or 'resnet') and the arguments of
      either's `build`; None stands for the default.
    image_size: side of a square image in pixels, or height and width.

  Raises:
    UserError: for unknown names and values, for blocks' properties that a
      ResNet doesn't have, and for shapes that don't fit the generator.
  """
  fields = {k: v for k, v in model_section.items() if v is not None}
  generator = fields.pop('generator')
  vit.choose('model.generator', generator, GENERATORS)
  if generator == 'vitunet':
    fields.pop('blocks', None)
    return vitunet.build(image_size=image_size, **fields)
  for name in fields.keys() - {*RESNET, *IDLE}:
    raise errors.UserError(
      f'model.{name}={fields[name]!r} is a property of transformer blocks: '
      "leave it out with model.generator='resnet'."
    )
  model = resnet_generator.build(
    **{name: fields[name] for name in RESNET if name in fields}
  )
  size = (image_size,) * 2 if isinstance(image_size, int) else image_size
  resnet_generator.check_size(*size)
  return model


def fitting_size(model: nn.Module, height: int, width: int) -> tuple[int, int]:
  """The size in pixels to which an image is brought to be translated.

  Args:
    model: a generator from `build`.
    height: of the image.
    width: of the image.

  Returns:
    The size itself, or the next smaller that the generator takes (or its
    smallest); the size of its training for one that takes no other.
  """
  if isinstance(model, vitunet.ViTUnet):
    return model.image_size
  unit, smallest = 4, 8  # of a ResNet
  if isinstance(model, vitunet_space.SpatialViTUnet):
    unit = smallest = model.patch_size * model.cells
  height, width = (
    max(side // unit * unit, smallest) for side in (height, width)
  )
  return height, width
