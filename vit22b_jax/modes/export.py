"""`--mode=export`: a classifier's weights under timm's names, and its use.

path = export.run(task, variables, run)
"""

import json
from typing import Any

import jax
from etils import epath

from vit22b_jax.runtime import workdir
from vit22b_jax.tasks import classification
from vit22b_jax.weights import timm

DESCRIPTION = 'model.json'


def run(
  task: classification.Classification, variables: Any, folder: workdir.Workdir
) -> epath.Path:
  """Writes model.safetensors and model.json; returns the first one's path.

  model.json says how images become inputs and what the outputs are:
  `class_names`, `image_size` and `load_size` (pixels, and those before the
  central crop), `eval_crop` (the share of `load_size` that is resized to
  `image_size` instead of that crop, or null), `mean` and `std` (of RGB in
  [0, 1]), `model` (the arguments of `vit22b_jax.create`), and `timm` (those of
  timm's `VisionTransformer`, `block_fn` and `norm_layer` by name, the norms'
  `eps`, and the oldest version).
  The header of model.safetensors holds the same text.

  Raises:
    UserError: timm has no such model.
  """
  text = json.dumps(describe(task), indent=2) + '\n'
  path = folder.path / 'model.safetensors'
  timm.write(
    path,
    task.model,
    jax.device_get(variables['params']),
    {'vit22b_jax': text},
    task.config.data.image_size,
  )
  folder.write_bytes(DESCRIPTION, text.encode())
  return path


def describe(task: classification.Classification) -> dict[str, Any]:
  """Returns the content of model.json."""
  data = task.config.data
  sequential = task.model.form == 'sequential'
  return {
    'class_names': list(task.names),
    'image_size': data.image_size,
    'load_size': data.load_size or data.image_size,
    'eval_crop': data.eval_crop,
    'mean': list(data.mean),
    'std': list(data.std),
    'model': {
      **{k: v for k, v in task.config.model.items() if v is not None},
      'num_classes': len(task.names),
    },
    'timm': {
      **timm.arguments(task.model, data.image_size),
      'block_fn': 'Block' if sequential else 'ParallelScalingBlock',
      **timm.norm_layer(task.model),
      'version': f'>={timm.VERSION}',
    },
  }
