"""Places arrays: the device mesh, and logical axis names -> mesh axes.

    mesh = sharding.make_mesh('fsdp+tensor')       # or fsdp=4, tensor=2, ...
    shardings = sharding.param_shardings(abstract_params, mesh)

    >>> mesh_shape('fsdp+tensor', 8)
    {'data': 1, 'fsdp': 4, 'tensor': 2}
    >>> mesh_shape('fsdp', 1024, data=-1, fsdp=128)
    {'data': 8, 'fsdp': 128, 'tensor': 1}

The mesh has three axes: `data` splits the batch, `fsdp` splits the batch and
every parameter, `tensor` splits attention heads and MLP slices. Parameters say
their axes by logical names (`models/axes.py`); `RULES` is the one table that
maps those to mesh axes. GSPMD does the rest: https://arxiv.org/abs/2105.04663.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit22b_jax import errors
from vit22b_jax.models import axes

DATA, FSDP, TENSOR = AXES = ('data', 'fsdp', 'tensor')

# Devices along each axis by the name of `config.sharding`; -1: the remaining.
PRESETS = {
  'data': {DATA: -1, FSDP: 1, TENSOR: 1},
  'fsdp': {DATA: 1, FSDP: -1, TENSOR: 1},
  'fsdp+tensor': {DATA: 1, FSDP: -1, TENSOR: 2},
}

# First match wins, and a mesh axis is used once per array: the batch takes
# `fsdp`, so activations leave EMBED whole while parameters split it.
RULES = (
  (axes.BATCH, (DATA, FSDP)),
  (axes.TOKENS, TENSOR),
  (axes.HEADS, TENSOR),
  (axes.MLP, TENSOR),
  (axes.EMBED, FSDP),
  (axes.CHANNELS, FSDP),
  (axes.CLASSES, FSDP),
)


def mesh_shape(preset: str, count: int, **given: int | None) -> dict[str, int]:
  """Returns the sizes of the mesh axes, in order, for `count` devices.

  The given sizes of `data`, `fsdp` and `tensor` override those of `preset`, a
  key of PRESETS. One axis at most may be -1, which takes the devices that the
  others leave.

  Raises:
    UserError: several are -1, or the product isn't the number of devices.
  """
  chosen = {axis: size for axis, size in given.items() if size is not None}
  shape = PRESETS[preset] | chosen
  asked = ', '.join(f'mesh.{axis}={size}' for axis, size in shape.items())
  asked = f'sharding={preset!r} with {asked}'
  sizes = list(shape.values())
  if sizes.count(-1) > 1:
    raise errors.UserError(f'{asked}: one at most may be -1 (the rest).')
  others = -math.prod(sizes)
  shape = {a: count // others if n == -1 else n for a, n in shape.items()}
  if math.prod(shape.values()) != count:
    mend = (
      f'{count} must be a multiple of {others}'
      if -1 in sizes
      else f'the product must be {count}; set one of them to -1 for "the rest"'
    )
    raise errors.UserError(f'{asked} does not suit {count} devices: {mend}.')
  return shape


def make_mesh(
  preset: str = 'data',
  *,
  devices: Sequence[jax.Device] | None = None,
  **sizes: int | None,
) -> Mesh:
  """Returns a mesh over devices, all at hand by default; see `mesh_shape`."""
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(preset, len(devices), **sizes)
  # Axes of a torus may be shared by two axes of the mesh: 256 of 8 x 8 x 16.
  placed = mesh_utils.create_device_mesh(
    list(shape.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_options(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `make_mesh` and `mesh_shape` take, as a config has it."""
  return {'preset': config['sharding']} | {a: config['mesh'][a] for a in AXES}


@contextlib.contextmanager
def mesh_context(mesh: Mesh):
  """Makes the models' activation constraints take effect.

  Both are needed: without `jax.set_mesh` flax drops the constraints silently.
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays [B, ...]: B over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
  """Returns the shardings of (abstract) arrays with flax's logical names.

  An axis that its mesh axis doesn't divide stays whole (10 classes or 3 heads
  on 2 devices): correct, at a cost in memory; see `find_unsharded`.

  The leaves of `boxed` are arrays or `nn.LogicallyPartitioned` boxes, as
  `jax.eval_shape(model.init, ...)` returns them; each becomes a NamedSharding.
  """

  def param_sharding(leaf):
    if not _is_boxed(leaf):
      return replicated(mesh)
    wanted = nn.logical_to_mesh_axes(leaf.names, RULES)
    kept = [
      axis if axis and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(wanted, leaf.value.shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*kept))

  return jax.tree.map(param_sharding, boxed, is_leaf=_is_boxed)


def opt_state_shardings(
  tx: optax.GradientTransformation, opt_state: Any, params: Any, mesh: Mesh
) -> Any:
  """Returns the shardings of an optax state: moments as their parameters.

  `tx` made the state, abstract or not; `params` are the shardings of the
  parameters. Everything else is replicated.
  """

  def is_frozen(x):
    return isinstance(x, optax.MaskedNode)

  return optax.tree_utils.tree_map_params(
    tx,
    lambda x, s: x if is_frozen(x) else s,
    opt_state,
    params,
    transform_non_params=lambda _: replicated(mesh),
    is_leaf=is_frozen,
  )


def batch_ways(mesh: Mesh) -> int:
  """Returns how many devices share a batch, which they must divide."""
  return mesh.shape[DATA] * mesh.shape[FSDP]


def round_up(batch_size: int, mesh: Mesh) -> int:
  """Returns the next batch size that the devices divide."""
  ways = batch_ways(mesh)
  return -(-batch_size // ways) * ways


def validate_batch_size(
  batch_size: int, mesh: Mesh, key: str = 'batch_size'
) -> None:
  """Raises UserError unless the devices divide the batch."""
  ways = batch_ways(mesh)
  if batch_size % ways:
    raise errors.UserError(
      f'{key}={batch_size} is not divisible by the {ways} devices that share '
      f'the batch (mesh data={mesh.shape[DATA]} x fsdp={mesh.shape[FSDP]}). '
      f'Use a multiple of {ways}, such as {round_up(batch_size, mesh)}.'
    )


def _is_boxed(leaf: Any) -> bool:
  return isinstance(leaf, nn.LogicallyPartitioned)


def find_unsharded(boxed: Any, mesh: Mesh) -> dict[str, int]:
  """Finds the weights that an axis of the mesh should split and doesn't.

  Those are: an axis of the array that RULES names and the devices don't divide,
  and a matrix with no axis for `fsdp`. Biases, and vectors without an axis in
  RULES, are small and expected whole. `boxed` is as in `param_shardings`.

  Returns:
    Their sizes by 'block_00/in_proj/kernel [8, 3]: 3 heads over tensor=2'.
  """
  found = {}
  leaves, _ = jax.tree.flatten_with_path(boxed, is_leaf=_is_boxed)
  for path, leaf in filter(lambda item: _is_boxed(item[1]), leaves):
    names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    if names[-1] == 'bias':
      continue
    shape = leaf.value.shape
    wanted = nn.logical_to_mesh_axes(leaf.names, RULES)
    reasons = [
      f'{size} {name} over {axis}={mesh.shape[axis]}'
      for name, axis, size in zip(leaf.names, wanted, shape, strict=True)
      if axis and size % mesh.shape[axis]
    ]
    if names[-1] == 'kernel' and FSDP not in wanted and mesh.shape[FSDP] > 1:
      reasons.append(f'no axis of it goes over {FSDP}={mesh.shape[FSDP]}')
    if reasons:
      text = f'{"/".join(names)} {list(shape)}: {", ".join(reasons)}'
      found[text] = math.prod(shape)
  return found


def validate_unsharded(boxed: Any, mesh: Mesh, max_replicated: float) -> str:
  """Returns a line about the weights of `find_unsharded`; '' without any.

  Raises:
    UserError: they are more than the share `max_replicated` of all weights.
  """
  found = find_unsharded(boxed, mesh)
  if not found:
    return ''
  total = sum(x.size for x in jax.tree.leaves(nn.unbox(boxed)))
  share = sum(found.values()) / total
  few = share <= max_replicated
  shown = [*found][: 3 if few else 20]
  if len(found) > len(shown):
    shown.append(f'and {len(found) - len(shown)} more')
  if few:
    return (
      f'{share:.2%} of the weights are whole on devices that should share '
      f'them: {"; ".join(shown)}.'
    )
  listed = ''.join(f'  {line}\n' for line in shown)
  sizes = ', '.join(f'mesh.{k}={v}' for k, v in mesh.shape.items())
  raise errors.UserError(
    f'{share:.0%} of the weights would be whole on devices that should share '
    f'them ({sizes}), and mesh.max_replicated={max_replicated:g}:\n'
    f'{listed}Choose sizes of the mesh that divide them, such as '
    "mesh.tensor=1, another preset (sharding='fsdp'), or a larger "
    'mesh.max_replicated if they fit into memory so.'
  )


def part_for_batch(mesh: Mesh, batch_size: int) -> Mesh:
  """Returns the part of a mesh whose devices can share a batch evenly.

  Several processes have to take part with all their devices.
  """
  data, fsdp = mesh.shape[DATA], mesh.shape[FSDP]
  if jax.process_count() > 1 or batch_size % fsdp:
    return mesh
  images = batch_size // fsdp
  part = max(n for n in range(1, data + 1) if images % n == 0)
  if part == data:
    return mesh
  devices = mesh.devices[:part]  # `data` is the first axis
  return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)
