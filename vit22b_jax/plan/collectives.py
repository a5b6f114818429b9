"""Finds a compiled program's collectives: what crosses which mesh axis.

for collective in collectives.find(module, {'data': 1, 'fsdp': 8}):
  collective.wire_bytes * collective.count
"""

import dataclasses
import math
import re

import numpy as np

from vit22b_jax.plan import costs, hlo

_ORDER = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'


@dataclasses.dataclass(frozen=True)
class Collective:
  """Describes one collective instruction.

  Its bytes are those of the whole array that is gathered or reduced, and what
  one device sends in a permutation.
  """

  kind: str  # the opcode, such as 'all-gather'
  bytes: int
  group: tuple[int, ...]  # positions, in the mesh, of devices that take part
  axes: tuple[str, ...]  # of the mesh, that they lie along
  count: int  # executions in a step

  @property
  def wire_bytes(self) -> float:
    """Returns bytes that a device sends in one execution, in a ring of n.

    Of what is gathered or reduced it passes (n - 1) / n on; of an all-reduce
    twice that. Chan et al. 2007, doi:10.1002/cpe.1206, section 4.
    """
    if self.kind == 'collective-permute':
      return self.bytes
    n = len(self.group)
    passes = 2 if self.kind == 'all-reduce' else 1
    return passes * self.bytes * (n - 1) / n


def find(module: hlo.Module, mesh_shape: dict[str, int]) -> list[Collective]:
  """Returns the collectives between several devices that a step executes.

  `mesh_shape` has the sizes of the mesh axes by name, in the mesh's order,
  which is also that of the program's devices.
  """
  found, seen = [], set()
  for name, i, count in hlo.executed(module, inside_fusions=True):
    if not costs.is_collective(i) or i.opcode.endswith('-done'):
      continue
    # One that is fused with several computations stands in each of them;
    # combined ones take numbers that others of another kind have too.
    channel = i.find(r'channel_id=(\d+)')
    key = (i.opcode, i.op_name, channel)
    group = _group(i, math.prod(mesh_shape.values()))
    if len(group) < 2 or (channel and key in seen):
      continue
    seen.add(key)
    kind, size = _kind_and_bytes(name, i, len(group))
    axes = _axes(group, mesh_shape)
    found.append(Collective(kind, size, group, axes, count))
  return found


def _kind_and_bytes(name, instruction, devices: int) -> tuple[str, int]:
  kind = instruction.opcode.removesuffix('-start')
  shapes = instruction.shapes
  if kind != 'all-reduce' and kind != instruction.opcode:
    # Of a -start: operands, results, and what else it needs.
    operands = len(instruction.operands)
    shapes = shapes[operands : 2 * operands]
  size = sum(shape.bytes for shape in shapes)
  if kind == 'reduce-scatter':
    size *= devices
  # A TPU's reduce-scatter is a fusion of an all-reduce with a slice.
  if kind == 'all-reduce' and 'all-reduce-scatter' in name:
    kind = 'reduce-scatter'
  return kind, size


def _group(instruction: hlo.Instruction, devices: int) -> tuple[int, ...]:
  """Returns the first group of devices, by their positions in the mesh.

  The forms are those of `replica_groups` in XLA's text: explicit lists, an
  iota [groups, size]<=[shape]T(axes), or a mesh with the axes reduced over.

  Raises:
    ValueError: the form is not known.
  """
  text = instruction.attributes
  if pair := re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', text):
    return tuple(sorted({int(n) for n in pair.groups()}))
  if iota := re.search(rf'replica_groups=\[([\d,]+)\]<={_ORDER}', text):
    groups, *order = iota.groups()
    ids = _ordered(devices, *order).reshape(_integers(groups))
    return tuple(ids[0].tolist())
  if mesh := re.search(
    r'replica_groups=mesh\[([^\]]*)\]'
    rf'(?:, device_ids=\({_ORDER}\))? \{{([^}}:]*)\}}',
    text,
  ):
    axes, *order, reduced = mesh.groups()
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
    ids = _ordered(devices, *order).reshape([*map(int, sizes.values())])
    names = re.findall(r"'(\w+)'", reduced)
    index = tuple(slice(None) if name in names else 0 for name in sizes)
    return tuple(ids[index].ravel().tolist())
  if listed := re.search(r'replica_groups=\{(?:\{([\d,]*)\})?', text):
    return tuple(_integers(listed.group(1)) or range(devices))
  raise ValueError(f'replica groups in an unknown form: {text[:200]}')


def _ordered(devices: int, shape: str | None, axes: str | None) -> np.ndarray:
  """Returns devices in XLA's order: 0, 1, ... shaped, transposed, flat."""
  ids = np.arange(devices).reshape(_integers(shape) or -1)
  return ids.transpose(_integers(axes) or None).ravel()


def _integers(text: str | None) -> list[int]:
  return [int(n) for n in re.findall(r'\d+', text or '')]


def _axes(
  group: tuple[int, ...], mesh_shape: dict[str, int]
) -> tuple[str, ...]:
  """Returns the mesh axes along which the members of a group differ."""
  places = np.unravel_index(group, tuple(mesh_shape.values()))
  return tuple(
    name
    for name, place in zip(mesh_shape, places, strict=True)
    if len(set(place.tolist())) > 1
  )
