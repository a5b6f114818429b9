"""Starts a translation from the networks of another run: `init_from`.

other_run.validate('runs/x')                      # before data are read
params = other_run.restore_params('runs/x', abstract_params)
"""

from typing import Any

import jax
from etils import epath

from vit22b_jax import errors
from vit22b_jax.runtime import checkpoint
from vit22b_jax.runtime import workdir as workdir_lib


def validate(path: epath.PathLike) -> None:
  """Raises UserError for a folder that no translation can start from."""
  there = workdir_lib.read_json(path, workdir_lib.CONFIG) or {}
  if there.get('task') != 'translation':
    raise errors.UserError(
      f'init_from={path}: expected the workdir of another translation, whose '
      'networks to start from. (To continue a run, give its --workdir.)'
    )


def restore_params(path: epath.PathLike, params: Any) -> Any:
  """Restores the weights of a run's newest checkpoint.

  Args:
    path: the run's workdir.
    params: shapes, types and shardings of the weights that are wanted.

  Raises:
    UserError: it has no checkpoint, or those of other networks.
  """
  wanted = {'params': params}
  leaves = jax.tree_util.tree_leaves_with_path(wanted)
  here = {jax.tree_util.keystr(k): list(x.shape) for k, x in leaves}

  def validate_shapes(meta):
    there = {k: v for k, v in meta['shapes'].items() if k in here}
    if there != here:
      raise errors.UserError(
        f'init_from={path} has other networks than this configuration: it '
        'needs the same model and discriminator and, unless model.resample '
        "is 'space', data.image_size."
      )

  manager = checkpoint.Manager(path, scores={}, read_only=True)
  try:
    found = manager.restore(wanted, check=validate_shapes)
  finally:
    manager.close()
  if found is None:
    raise errors.UserError(f'init_from={path} has no checkpoint.')
  return found.state['params']
