"""Starts a run from the weights of another one's workdir: `init_from`.

other_run.validate('runs/x', 'translation')       # before data are read
params = other_run.restore_params('runs/x', abstract_params, 'translation')
"""

from typing import Any

import jax
from etils import epath

from vit22b_jax import config as config_lib
from vit22b_jax import errors
from vit22b_jax.config import ConfigDict
from vit22b_jax.runtime import checkpoint
from vit22b_jax.runtime import workdir as workdir_lib


def validate(path: epath.PathLike, task: str) -> ConfigDict:
  """Returns the config of a run that one of the task can start from.

  Raises:
    UserError: there is no run, or one of another task.
  """
  text = workdir_lib.read_text(path, workdir_lib.CONFIG)
  if text is not None:
    config = config_lib.from_json(text, epath.Path(path) / workdir_lib.CONFIG)
    if config.task == task:
      return config
  raise errors.UserError(
    f'init_from={path}: expected the workdir of another {task}, whose weights '
    'to start from. (To continue a run, give its --workdir.)'
  )


def restore_params(path: epath.PathLike, params: Any, task: str) -> Any:
  """Restores the weights of a run's newest checkpoint, averaged if it has such.

  Args:
    path: the run's workdir.
    params: shapes, types and shardings of the weights that are wanted.
    task: of both runs.

  Raises:
    UserError: it has no checkpoint, or those of other networks.
  """
  kind = 'ema' if validate(path, task).optim.get('ema') else 'params'
  wanted = {kind: params}
  leaves = jax.tree_util.tree_leaves_with_path(wanted)
  here = {jax.tree_util.keystr(k): list(x.shape) for k, x in leaves}

  def validate_shapes(meta):
    there = {k: v for k, v in meta['shapes'].items() if k in here}
    if there != here:
      raise errors.UserError(
        f'init_from={path} has other networks than this configuration: it '
        'needs the same model (and discriminator) and, unless model.resample '
        "is 'space', data.image_size. A file that --mode=export writes fits "
        'other image sizes too.'
      )

  manager = checkpoint.Manager(path, scores={}, read_only=True)
  try:
    found = manager.restore(wanted, check=validate_shapes)
  finally:
    manager.close()
  if found is None:
    raise errors.UserError(f'init_from={path} has no checkpoint.')
  return found.state[kind]
