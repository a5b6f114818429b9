"""Loads the weights that a run starts from: `init_from`.

initial.validate(path, 'classification')              # before data are read
params = initial.load(path, model, params, names, image_size)
params = initial.restore_params(path, abstract_params, 'translation')
"""

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from vit22b_jax import errors
from vit22b_jax.config import ConfigDict
from vit22b_jax.models import stacking, vit
from vit22b_jax.runtime import checkpoint, checksums, runs, sharding
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
  params: dict[str, Any],
  names: Sequence[str],
  image_size: int,
) -> dict[str, Any]:
  """Returns a classifier's weights of a file or of another run.

  They are placed as `params`, its new ones, which are sharded over a mesh. The
  head stays new where the other run has another number of classes.

  Args:
    path: a file, see `pretrained.load_pretrained`, or a workdir.
    model: the classifier.
    params: its new weights.
    names: its classes.
    image_size: of its images, in pixels.

  Raises:
    UserError: the weights are of another model.
  """
  path = epath.Path(path).expanduser()
  shardings = jax.tree.map(lambda x: x.sharding, params)
  if path.is_dir():
    wanted = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      params,
      shardings,
    )
    others = workdir_lib.read_json(path, workdir_lib.CLASSES)
    if len(others or ()) != len(names):
      wanted.pop('head', None)
    return params | restore_params(path, wanted, 'classification')
  # Each process reads the file, and needs the new head whole.
  mesh = jax.tree.leaves(shardings)[0].mesh
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(params)
  found = pretrained.load_pretrained(
    path, model, jax.device_get(whole), image_size
  )
  found = jax.tree.map(lambda x, p: x.astype(p.dtype), found, params)
  return jax.device_put(found, shardings)


def restore_params(path: epath.PathLike, params: Any, task: str) -> Any:
  """Restores the weights of a run's newest checkpoint, averaged if it has such.

  `params` are the shapes, types and shardings of those that are wanted; `task`
  is that of both runs.

  Raises:
    UserError: it has no checkpoint, or those of other networks.
  """
  path = epath.Path(path).expanduser()
  kind = 'ema' if _config_of(path, task).optim.get('ema') else 'params'
  wanted = {kind: params}

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
  try:
    found = manager.restore(wanted, check=validate_shapes)
  finally:
    manager.close()
  if found is None:
    raise errors.UserError(f'init_from={path} has no checkpoint.')
  return found.state[kind]
