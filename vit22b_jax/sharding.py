"""Where arrays live: the device mesh, and logical axis names -> mesh axes.

    mesh = sharding.make_mesh(data=-1, fsdp=2, tensor=1)
    shardings = sharding.of_boxed(abstract_params, mesh)

The mesh has three axes: `data` splits the batch, `fsdp` splits the batch and
every parameter, `tensor` splits attention heads and MLP slices. Parameters say
their axes by logical names (`models/axes.py`); `RULES` is the one table that
maps those to mesh axes. GSPMD does the rest: https://arxiv.org/abs/2105.04663.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit22b_jax import errors
from vit22b_jax.models import axes

DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'

# First match wins, and a mesh axis is used once per array: the batch takes
# `fsdp`, so activations leave EMBED whole while parameters split it.
RULES = (
  (axes.BATCH, (DATA, FSDP)),
  (axes.HEADS, TENSOR),
  (axes.MLP, TENSOR),
  (axes.EMBED, FSDP),
  (axes.CHANNELS, FSDP),
)


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh with axes (data, fsdp, tensor) over devices.

  Args:
    data: devices along `data`; -1 takes those that the other axes leave.
    fsdp: devices along `fsdp`; one axis at most may be -1.
    tensor: devices along `tensor`.
    devices: all at hand by default.

  Raises:
    UserError: the product isn't the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  shape = [data, fsdp, tensor]
  asked = f'mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor}'
  if any(n != -1 and n < 1 for n in shape) or shape.count(-1) > 1:
    raise errors.UserError(
      f'{asked}: each must be a positive number, and one at most -1 (the rest).'
    )
  if -1 in shape:
    others = -math.prod(shape)
    shape[shape.index(-1)] = count // others
  if math.prod(shape) != count:
    raise errors.UserError(
      f'{asked} does not divide the {count} devices at hand: the product must '
      f'be {count}. Set one of them to -1 for "the rest".'
    )
  return jax.make_mesh(
    shape,
    (DATA, FSDP, TENSOR),
    axis_types=(AxisType.Auto,) * 3,
    devices=devices,
  )


@contextlib.contextmanager
def use(mesh: Mesh):
  """Context in which activation constraints of the models take effect.

  Both are needed: without `jax.set_mesh` flax drops the constraints silently.
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays [B, ...]: the batch over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def of_boxed(boxed: Any, mesh: Mesh) -> Any:
  """Shardings of a tree of (abstract) arrays with flax's logical names.

  An axis that its mesh axis doesn't divide stays whole (10 classes or 3 heads
  on 2 devices): correct, and a small cost in memory.

  Args:
    boxed: a tree whose leaves are arrays or `nn.LogicallyPartitioned` boxes,
      as `jax.eval_shape(model.init, ...)` returns it.

  Returns:
    The unboxed tree's structure with a NamedSharding for each leaf.
  """

  def one(leaf):
    """The sharding of one leaf."""
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return replicated(mesh)
    spec = nn.logical_to_mesh_axes(leaf.names, RULES)
    sizes = leaf.value.shape
    kept = [
      axis if axis and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(spec, sizes, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*kept))

  return jax.tree.map(
    one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )


def of_optimizer(
  tx: optax.GradientTransformation,
  opt_state: Any,
  params: Any,
  mesh: Mesh,
) -> Any:
  """Shardings of an optax state: moments as their parameters, rest whole.

  Args:
    tx: the transformation that made the state.
    opt_state: the (abstract) state.
    params: the shardings of the parameters.
  """
  return optax.tree_utils.tree_map_params(
    tx,
    lambda _, s: s,
    opt_state,
    params,
    transform_non_params=lambda _: replicated(mesh),
  )


def check_batch(batch_size: int, mesh: Mesh, key: str = 'batch_size') -> None:
  """Raises UserError unless the devices divide the batch."""
  ways = mesh.shape[DATA] * mesh.shape[FSDP]
  if batch_size % ways:
    raise errors.UserError(
      f'{key}={batch_size} is not divisible by the {ways} devices that share '
      f'the batch (mesh data={mesh.shape[DATA]} x fsdp={mesh.shape[FSDP]}). '
      f'Use a multiple of {ways}, such as {-(-batch_size // ways) * ways}.'
    )
