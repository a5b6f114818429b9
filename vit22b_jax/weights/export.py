"""Our weights -> safetensors under timm's names.

export.write('out.safetensors', model, params, {'classes': 'a,b'}, 224)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

from vit22b_jax import errors
from vit22b_jax.models import embeddings, stacking, vit
from vit22b_jax.weights import timm

TIMM_VERSION = '1.0.31'  # the oldest whose ParallelScalingBlock agrees


def timm_arguments(model: vit.ViT, image_size: int) -> dict[str, Any]:
  """Returns the arguments of timm's `VisionTransformer` but `block_fn`.

  Args:
    model: the `vit` or the `vit22b` block's model.
    image_size: height and width of its images in pixels.
  """
  return {
    'img_size': image_size,
    'patch_size': model.patch_size,
    'num_classes': model.num_classes,
    'embed_dim': model.width,
    'depth': model.depth,
    'num_heads': model.num_heads,
    'mlp_ratio': model.mlp_dim / model.width,
    'qkv_bias': model.qkv_bias,
    'qk_norm': model.qk_norm,
    'class_token': model.pool == 'cls',
    'global_pool': 'token' if model.pool == 'cls' else 'avg',
    'final_norm': True,
    'fc_norm': False,
  }


def write(
  path: epath.PathLike,
  model: vit.ViT,
  params: Mapping[str, Any],
  metadata: Mapping[str, str],
  image_size: int,
) -> None:
  """Writes parameters as safetensors under timm's names.

  timm's counterpart is `VisionTransformer(**timm_arguments(model, image_size))`
  with, for `vit22b`, `block_fn=ParallelScalingBlock` of TIMM_VERSION or newer
  (1.0.19 computes other logits). Fixed positions are written as if they had
  been learned.

  Args:
    path: file to write; `gs://` works.
    model: the `vit` or the `vit22b` block's model.
    params: its (unboxed) parameters.
    metadata: strings stored in the file's header.
    image_size: height and width of its images in pixels, which fixed positions
      follow from.

  Raises:
    UserError: when timm has no counterpart.
  """
  timm.validate(model)
  if model.head != 'linear' or model.pool == 'map':
    raise errors.UserError(
      f'model.head={model.head!r} with model.pool={model.pool!r}: only a '
      "linear head on the pool 'cls' or 'mean' has names in timm."
    )
  flat = traverse_util.flatten_dict(stacking.unstack(params), sep='/')
  arrays = {}
  for entry in timm.entries(model):
    array = np.asarray(flat[entry.path]) if entry.path else np.empty(0)
    for name, tensor in zip(entry.names, entry.save(array), strict=True):
      arrays[name] = np.ascontiguousarray(tensor, np.float32)
  if model.pos_embedding == 'sincos':
    side, extra = image_size // model.patch_size, int(model.pool == 'cls')
    fixed = embeddings.fixed_positions(side, side, model.width, extra)
    arrays['pos_embed'] = fixed[None]
  header = {'format': 'pt', **metadata}
  epath.Path(path).write_bytes(safetensors.numpy.save(arrays, header))
