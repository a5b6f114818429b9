"""Finds a compiled program's collectives: what crosses which mesh axis.

for collective in collectives.find(module, {'data': 1, 'fsdp': 8}):
  collective.wire_bytes * collective.count
"""

import dataclasses
import math
import re

import numpy as np

from vit22b_jax.plan import costs, hlo

# Of the bytes V that a group gathers or reduces, each device of a ring passes
# V (n - 1) / n on; of an all-reduce twice that. Chan et al. 2007,
# doi:10.1002/cpe.1206, section 4.
_PASSES = {
  'all-gather': 1,
  'reduce-scatter': 1,
  'all-reduce': 2,
  'all-to-all': 1,
  'collective-broadcast': 1,
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """Describes one collective instruction.

  Attributes:
    kind: 'all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all' or
      'collective-permute'.
    bytes: of the whole array that is gathered or reduced; what one device
      sends in a permutation.
    group: positions, in the mesh, of the devices that take part together.
    axes: the mesh axes that they lie along.
    count: executions in a step.
    op_name: which line of the traced program it comes from.
  """

  kind: str
  bytes: int
  group: tuple[int, ...]
  axes: tuple[str, ...]
  count: int
  op_name: str

  @property
  def wire_bytes(self) -> float:
    """Returns bytes that a device sends in one execution, in a ring."""
    if self.kind == 'collective-permute':
      return self.bytes
    n = len(self.group)
    return _PASSES[self.kind] * self.bytes * (n - 1) / n


def find(module: hlo.Module, mesh_shape: dict[str, int]) -> list[Collective]:
  """Returns the collectives between several devices that a step executes.

  Args:
    module: the compiled program.
    mesh_shape: sizes of the mesh axes by name, in the mesh's order, which is
      also that of the program's devices.
  """
  found, seen = [], set()
  steps = hlo.executed(module, inside_fusions=True)
  for name, instruction, count in steps:
    opcode = instruction.opcode
    if not costs.is_collective(instruction) or opcode.endswith('-done'):
      continue
    # One that is fused with several computations stands in each of them.
    channel = re.search(r'channel_id=(\d+)', instruction.attributes)
    # Combined ones take numbers that others of another kind have too.
    key = (opcode, instruction.op_name, channel and channel.group(1))
    if channel and key in seen:
      continue
    if channel:
      seen.add(key)
    group = _group(instruction, math.prod(mesh_shape.values()))
    if len(group) < 2:
      continue
    kind, size = _kind_and_bytes(name, instruction, len(group))
    found.append(
      Collective(
        kind, size, group, _axes(group, mesh_shape), count, instruction.op_name
      )
    )
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
  pairs = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', text)
  if pairs:
    return tuple(sorted({int(n) for n in pairs.groups()}))
  found = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text
  )
  if found:
    ids = _order(devices, found.group(2), found.group(3))
    return tuple(ids.reshape(_integers(found.group(1)))[0].tolist())
  found = re.search(
    r'replica_groups=mesh\[([^\]]*)\]'
    r'(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}',
    text,
  )
  if found and ':' not in found.group(4):
    sizes = re.findall(r"'(\w+)'=(\d+)", found.group(1))
    names = re.findall(r"'(\w+)'", found.group(4))
    ids = _order(devices, found.group(2), found.group(3))
    ids = ids.reshape([int(size) for _, size in sizes])
    index = tuple(slice(None) if n in names else 0 for n, _ in sizes)
    return tuple(ids[index].ravel().tolist())
  found = re.search(r'replica_groups=\{(?:\{([\d,]*)\})?', text)
  if found:
    listed = _integers(found.group(1) or '')
    return tuple(listed or range(devices))
  raise ValueError(f'replica groups in an unknown form: {text[:200]}')


def _order(devices: int, shape: str | None, axes: str | None) -> np.ndarray:
  """Returns devices in XLA's order: 0, 1, ... shaped, transposed, flat."""
  ids = np.arange(devices)
  if shape:
    ids = ids.reshape(_integers(shape))
  if axes:
    ids = ids.transpose(_integers(axes))
  return ids.ravel()


def _integers(text: str) -> list[int]:
  return [int(n) for n in text.split(',') if n]


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
