"""Loads the weights that a classifier's training starts from: `init_from`.

initial.validate(path)                    # before data are read
params = initial.load(path, model, params, names, image_size)
"""

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from vit22b_jax import errors
from vit22b_jax.models import vit
from vit22b_jax.runtime import sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.weights import other_run, pretrained


def validate(path: epath.PathLike) -> None:
  """Raises UserError for what is neither a file nor a classifier's workdir."""
  path = epath.Path(path)
  if not path.exists():
    raise errors.UserError(
      f'init_from={path}: there is no such file of weights, nor a workdir.'
    )
  if path.is_dir():
    other_run.validate(path, 'classification')


def load(
  path: epath.PathLike,
  model: vit.ViT,
  params: dict[str, Any],
  names: Sequence[str],
  image_size: int,
) -> dict[str, Any]:
  """Returns weights of a file or of another run, placed as new ones are.

  The head stays new where the other run has another number of classes.

  Args:
    path: a file, see `pretrained.load_pretrained`, or a workdir.
    model: the classifier.
    params: its new weights, sharded over a mesh.
    names: its classes.
    image_size: of its images.

  Raises:
    UserError: the weights are of another model.
  """
  shardings = jax.tree.map(lambda x: x.sharding, params)
  if epath.Path(path).is_dir():
    wanted = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      params,
      shardings,
    )
    others = workdir_lib.read_json(path, workdir_lib.CLASSES)
    if len(others or ()) != len(names):
      wanted.pop('head', None)
    return params | other_run.restore_params(path, wanted, 'classification')
  # Each process reads the file, and needs the new head whole.
  mesh = jax.tree.leaves(shardings)[0].mesh
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(params)
  found = pretrained.load_pretrained(
    path, model, jax.device_get(whole), image_size
  )
  found = jax.tree.map(lambda x, p: x.astype(p.dtype), found, params)
  return jax.device_put(found, shardings)
