"""Builds the generator that a config's `model` section describes.

model = generators.build(config.model.to_dict(), image_size=256)

>>> import jax, jax.numpy as jnp
>>> model = build_vitunet('released', 'S', image_size=256, patch_size=32)
>>> images = jnp.zeros((2, 256, 256, 3))
>>> params = jax.eval_shape(model.init, jax.random.key(0), images)
>>> sum(x.size for x in jax.tree.leaves(params))
13086083
"""

from typing import Any

import flax.linen as nn

from vit22b_jax import errors, rules
from vit22b_jax.models import resnet_generator, vit, vitunet, vitunet_spatial

RESNET = ('blocks', 'width', 'dtype', 'precision')
RESAMPLING = {
  'channels': vitunet.ViTUnet,
  'space': vitunet_spatial.SpatialViTUnet,
}


def build_vitunet(
  block: str = 'vit22b',
  variant: str = 'S',
  *,
  image_size: int | tuple[int, int],
  patch_size: int,
  resample: str = 'channels',
  **overrides: Any,
) -> vitunet.StagedGenerator:
  """Returns a ViTUnet from the names of a block and of a size.

  Args:
    block: a key of `vit.PRESETS`.
    variant: a key of `vit.VARIANTS`.
    image_size: side of a square image in pixels, or height and width.
    patch_size: side of a patch in pixels.
    resample: what stages resample: 'channels' (released) or 'space'.
    **overrides: any field of a `Transformer`; `init` sets `init_kind`. None
      stands for the default.

  Raises:
    UserError: for unknown names and values, for impossible combinations, and
      for shapes that don't divide as the architecture has it.
  """
  rules.validate_fields('model', {'resample': resample}, 'translation')
  # A classifier of the same fields, for its checks of each and of all.
  like = vit.build(
    block, variant, num_classes=1, patch_size=patch_size, **overrides
  )
  shared = like.shared_fields()
  for name in overrides:
    errors.validate_choice('model key', name, ['depth', 'init', *shared])
  if isinstance(image_size, int):
    image_size = (image_size, image_size)
  model = RESAMPLING[resample](
    **shared,
    image_size=tuple(image_size),
    patch_size=patch_size,
    form=like.form,
    depth=like.depth,
  )
  model.validate()
  return model


def build(
  model_section: dict[str, Any], image_size: int | tuple[int, int]
) -> nn.Module:
  """Returns the generator that a config's section `model` describes.

  Args:
    model_section: `generator` ('vitunet' or 'resnet') and the arguments of
      `build_vitunet` or the fields RESNET; None stands for the default,
      dtype='auto' for float32, as in `vit.build`.
    image_size: side of a square image in pixels, or height and width.

  Raises:
    UserError: as `build_vitunet`, for what only the other generator reads, and
      for sizes that a ResNet doesn't halve.
  """
  fields = {k: v for k, v in model_section.items() if v is not None}
  if fields.pop('generator') == 'vitunet':
    if 'blocks' in fields:
      raise errors.UserError(
        f'model.blocks={fields["blocks"]} is for a ResNet only: a ViTUnet has '
        'model.depth.'
      )
    if 'patch_size' not in fields:
      raise errors.UserError(
        'model.patch_size=None is for a ResNet only: give the side of a patch '
        'of the ViTUnet in pixels.'
      )
    return build_vitunet(image_size=image_size, **fields)
  others = [f'{k}={v!r}' for k, v in fields.items() if k not in RESNET]
  if others:
    raise errors.UserError(
      f"model.generator='resnet' reads none of model.{', '.join(others)}: use "
      'the word resnet, which leaves them out, as in '
      '--config=configs/translation_folder.py:resnet, or set them to None.'
    )
  if fields.get('dtype') == 'auto':
    fields['dtype'] = 'float32'
  size = (image_size,) * 2 if isinstance(image_size, int) else image_size
  resnet_generator.check_size(*size)
  return resnet_generator.ResNetGenerator(**fields)


def fitting_size(
  model: nn.Module, height: int, width: int, *, larger: bool = False
) -> tuple[int, int]:
  """Returns the size in pixels to which an image is brought for translation.

  It is the size itself, or the next smaller (or `larger`) that the generator
  takes, or its smallest; the size of its training for one that takes no other.
  """
  if isinstance(model, vitunet.ViTUnet):
    return model.image_size
  unit, smallest = 4, 8  # of a ResNet
  if isinstance(model, vitunet_spatial.SpatialViTUnet):
    unit = smallest = model.patch_size * model.cells
  spare = unit - 1 if larger else 0
  sides = ((side + spare) // unit * unit for side in (height, width))
  return tuple(max(side, smallest) for side in sides)
