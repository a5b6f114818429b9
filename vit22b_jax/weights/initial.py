"""Loads the weights that a run starts from: `init_from`.

initial.validate(path, 'classification')              # before data are read
weights = initial.load(path, model, weights, names, image_size)
weights = initial.restore(path, {'params': shapes}, 'translation', step)
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vit22b_jax import errors
from vit22b_jax.config import ConfigDict
from vit22b_jax.models import stacking, vit
from vit22b_jax.runtime import checkpoint, checksums, formats, runs
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.weights import pretrained


def validate(path: epath.PathLike, task: str) -> None:
  """Raises UserError for no workdir of the task, nor a classifier's file."""
  path = epath.Path(path).expanduser()
  if task == 'classification' and not path.exists():
    raise errors.UserError(
      f'init_from={path}: there is no such file of weights, nor a workdir.'
    )
  if task == 'translation' or path.is_dir():
    _config_of(path, task)


def _config_of(path: epath.PathLike, task: str) -> ConfigDict:
  config = runs.find_config(path)
  if config is not None and config.task == task:
    return config
  raise errors.UserError(
    f'init_from={path}: expected the workdir of another {task}, whose weights '
    'to start from. (To continue a run, give its --workdir.)'
  )


def load(
  path: epath.PathLike,
  model: vit.ViT,
  weights: dict[str, Any],
  names: Sequence[str],
  image_size: int,
  step: int | None = None,
) -> dict[str, Any]:
  """Returns a classifier's weights of a file or of another run.

  They are placed as `weights`, its new `params` and `batch_stats`, which are
  sharded over a mesh. The head stays new where the other run has other classes,
  and so do batch norm's statistics, which are the head's.

  Args:
    path: a file, see `pretrained.load_pretrained`, or a workdir.
    model: a classifier of `names` and of images of `image_size` pixels.
    step: of the other run's checkpoint; None for its newest.

  Raises:
    UserError: the weights are of another model.
  """
  path = epath.Path(path).expanduser()
  params = weights['params']
  if path.is_dir():
    wanted = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      {key: value for key, value in weights.items() if value},
    )
    others = formats.read_json(path / workdir_lib.CLASSES)
    if others != list(names):
      logging.info('The head begins anew: %s has other classes.', path)
      wanted = {'params': dict(wanted['params'])}
      wanted['params'].pop('head', None)
    found = restore(path, wanted, 'classification', step)
    return weights | found | {'params': params | found['params']}
  # Each process reads the file, and needs the new head whole.
  whole = multihost_utils.process_allgather(params, tiled=True)
  found = pretrained.load_pretrained(path, model, whole, image_size)
  found = jax.tree.map(
    lambda x, p: jax.device_put(x.astype(p.dtype), p.sharding), found, params
  )
  return weights | {'params': found}


def restore(
  path: epath.PathLike, wanted: dict[str, Any], task: str, step: int | None
) -> dict[str, Any]:
  """Restores weights of a run's checkpoint, averaged ones if it has such.

  Args:
    path: the run's workdir.
    wanted: shapes, types and shardings of `params` and others of a state.
    task: that of both runs.
    step: of the checkpoint; None for the newest.

  Raises:
    UserError: it has no checkpoint, or those of other networks.
  """
  path = epath.Path(path).expanduser()
  kind = 'ema' if _config_of(path, task).optim.get('ema') else 'params'
  wanted = {kind if k == 'params' else k: v for k, v in wanted.items()}

  def validate_shapes(meta):
    there = meta['shapes']
    leaves = checksums.named_leaves(stacking.like(wanted, there))
    if any(there.get(k) != list(x.shape) for k, x in leaves.items()):
      raise errors.UserError(
        f'init_from={path} has other networks than this configuration: it '
        'needs the same model (and discriminator) and, unless model.resample '
        "is 'space', data.image_size. A file that --mode=export writes fits "
        'other image sizes too.'
      )

  manager = checkpoint.Manager(path, scores={}, read_only=True)
  with contextlib.closing(manager):
    found = manager.restore(wanted, step=step, check=validate_shapes)
  if found is None:
    raise errors.UserError(f'init_from={path} has no checkpoint.')
  params = found.state.pop(kind)
  return {'params': params, **found.state}
