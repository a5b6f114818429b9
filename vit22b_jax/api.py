"""The package from Python: models by name, and models of finished runs.

model, variables = vit22b_jax.load('runs/cifar10_vit22b_s')
logits = model.apply(variables, images)

>>> import jax.numpy as jnp
>>> model = create('vit22b', variant='Ti', num_classes=10, patch_size=4)
>>> images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
>>> logits, _ = jax.eval_shape(
...   lambda x: model.init_with_output(jax.random.key(0), x), images
... )
>>> logits.shape
(8, 10)
"""

import math
from typing import Any

import flax.linen as nn
import jax
from etils import epath
from ml_collections import config_dict

from vit22b_jax import config as config_lib
from vit22b_jax import errors, tasks
from vit22b_jax.models import vit
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import checkpoint, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base


def create(
  block: str = 'vit22b',
  variant: str = 'S',
  *,
  num_classes: int = 1000,
  patch_size: int = 16,
  **fields: Any,
) -> vit.ViT:
  """A linen module by name.

  Args:
    block: a row of the table of blocks: 'vit', 'vit22b', 'vit22b_mlp_norm',
      'released_vit', 'released', 'released_unnormed'.
    variant: 'Ti', 'S', 'B', 'L', 'H' or '22B'.
    num_classes: outputs.
    patch_size: pixels a side; the image size must be a multiple.
    **fields: any other key of a config's `model` section, such as
      `pool='mean'` or `qk_norm=False`.

  Returns:
    A module that maps float32 images [B, H, W, 3] to logits [B, num_classes].

  Raises:
    UserError: an unknown name, or sizes that don't fit together.
  """
  return vit.build(
    block, variant, num_classes=num_classes, patch_size=patch_size, **fields
  )


def load(workdir: epath.PathLike) -> tuple[nn.Module, dict[str, Any]]:
  """The model of a run and its weights: the best by validation, or the last.

  A classifier's images must be normalised as in training: x / 255, minus
  `data.mean`, divided by `data.std` of the run's config.json. Of a translation,
  the model is the generator, for images in [-1, 1], and the variables are
  the parameters of both directions, by name:
  `model.apply({'params': variables['gen_ab']}, images)`.

  Args:
    workdir: a run's folder, local or `gs://`.

  Returns:
    The linen module, and its variables on the devices at hand.

  Raises:
    UserError: the folder isn't a run's, or has no checkpoint.
  """
  config = read_config(workdir)
  task, manager = open_run(workdir, config)
  _, variables, _ = evaluate.restore(task, manager, config.eval.checkpoint)
  manager.close()
  return task.model, variables


def read_config(workdir: epath.PathLike) -> config_dict.ConfigDict:
  """The configuration that a run was made with.

  Raises:
    UserError: the folder isn't a run's.
  """
  text = workdir_lib.read_text(workdir, workdir_lib.CONFIG)
  if text is None:
    raise errors.UserError(
      f'{workdir} is not the folder of a run: it has no config.json. Give the '
      '--workdir of a training run.'
    )
  path = epath.Path(workdir) / workdir_lib.CONFIG
  return config_lib.from_json(text, path)


def open_run(
  workdir: epath.PathLike,
  config: config_dict.ConfigDict,
  data: Any | None = None,
) -> tuple[base.Task, checkpoint.Manager]:
  """A run's task and its checkpoints, on as many devices as share its batches.

  Args:
    workdir: the run's folder.
    config: its configuration.
    data: the data set, where it is needed.

  Raises:
    UserError: the folder lacks the names of the classes.
  """
  names = workdir_lib.read_json(workdir, workdir_lib.CLASSES)
  if names is None:
    raise errors.UserError(
      f'{workdir} has no classes.json: its training never began. Train first, '
      f'with --config=... --workdir={workdir}.'
    )
  task = tasks.named(config.task)(config, _mesh(config), names, data)
  manager = checkpoint.Manager(
    workdir, scores=evaluate.scores(task, workdir), read_only=True
  )
  return task, manager


def _mesh(config: config_dict.ConfigDict) -> jax.sharding.Mesh:
  """Today's devices need not be those of the run, nor divide its batches."""
  devices = jax.devices()
  if jax.process_count() == 1:
    batch = tasks.named(config.task).parallel_images(config)
    parts = math.gcd(len(devices), batch, config.eval.batch_size or batch)
    devices = devices[:parts]
  return sharding.make_mesh(devices=devices)
