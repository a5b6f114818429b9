"""The generator that a config's `model` section asks for.

model = generators.build(config.model.to_dict(), image_size=256)
"""

from typing import Any

import flax.linen as nn

from vit22b_jax import errors
from vit22b_jax.models import resnet_generator, vitunet, vitunet_space

KINDS = ('vitunet', 'resnet')
RESNET = ('blocks', 'width', 'dtype', 'precision')


def build(
  model_section: dict[str, Any], image_size: int | tuple[int, int]
) -> nn.Module:
  """A generator: `vitunet.build` or `resnet_generator.build`.

  Args:
    model_section: `generator` ('vitunet' or 'resnet') and the arguments of
      either's `build`; None stands for the default.
    image_size: side of a square image in pixels, or height and width.

  Raises:
    UserError: for unknown names and values, for what only the other generator
      reads, and for shapes that don't fit the generator.
  """
  fields = {k: v for k, v in model_section.items() if v is not None}
  generator = fields.pop('generator')
  errors.validate_choice('model.generator', generator, KINDS)
  if generator == 'vitunet':
    if 'blocks' in fields:
      raise errors.UserError(
        f'model.blocks={fields["blocks"]} is of a ResNet alone: a ViTUnet has '
        'model.depth.'
      )
    return vitunet.build(image_size=image_size, **fields)
  others = [f'{k}={v!r}' for k, v in fields.items() if k not in RESNET]
  if others:
    raise errors.UserError(
      f"model.generator='resnet' reads none of model.{', '.join(others)}: use "
      'the word resnet, which leaves them out, as in '
      '--config=configs/translation_folder.py:resnet, or set them to None.'
    )
  model = resnet_generator.build(**fields)
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
