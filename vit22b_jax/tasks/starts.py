"""Starting a translation from the networks of another: `init_from`.

starts.check('runs/x')                      # before data are read
params = starts.networks('runs/x', abstract_params)
"""

from typing import Any

import jax
from etils import epath

from vit22b_jax import errors
from vit22b_jax.runtime import checkpoint
from vit22b_jax.runtime import workdir as workdir_lib


def check(path: epath.PathLike) -> None:
  """Raises UserError for what no translation can start from."""
  there = workdir_lib.read_json(path, workdir_lib.CONFIG) or {}
  if there.get('task') != 'translation':
    raise errors.UserError(
      f'init_from={path}: expected the workdir of another translation, whose '
      'networks to start from. (To continue a run, give its --workdir.)'
    )


def networks(path: epath.PathLike, params: dict[str, Any]) -> dict[str, Any]:
  """The weights of a run's newest checkpoint.

  Args:
    path: the run's workdir.
    params: shapes, types and shardings of the weights that are wanted.

  Raises:
    UserError: it has none, or those of other networks.
  """
  wanted = {'params': params}
  leaves = jax.tree_util.tree_flatten_with_path(wanted)[0]
  here = {jax.tree_util.keystr(k): list(x.shape) for k, x in leaves}

  def check_shapes(meta):
    there = {k: v for k, v in meta['shapes'].items() if k in here}
    if there != here:
      raise errors.UserError(
        f'init_from={path} has other networks than this configuration: it '
        'needs the same model and discriminator and, unless model.resample '
        "is 'space', data.image_size."
      )

  manager = checkpoint.Manager(path, scores={}, read_only=True)
  try:
    found = manager.restore(wanted, check=check_shapes)
  finally:
    manager.close()
  if found is None:
    raise errors.UserError(f'init_from={path} has no checkpoint.')
  return found.state['params']
