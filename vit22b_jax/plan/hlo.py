"""Reads the text of a compiled XLA program: instructions, and what runs.

    module = hlo.parse(compiled.as_text())
    for name, instruction, count in hlo.executed(module): ...

XLA's own cost analysis counts the body of a loop once. Here every instruction
comes with the number of times that a step executes it. The text's grammar is
that of `HloModule::ToString` (github.com/openxla/xla, xla/hlo/ir/hlo_module.h).
"""

import dataclasses
import math
import re
from collections.abc import Iterator

# Bytes of an element; sub-byte types aside, which nothing here uses.
_BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  's16': 2,
  'u16': 2,
  'f16': 2,
  'bf16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
  'c64': 8,
}
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
  r'%([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
  """Describes one array of an instruction's result.

  Attributes:
    dtype: XLA's name, such as 'bf16'.
    dims: the sizes of the axes, on one device.
    in_hbm: whether it lies in the chip's main memory rather than on the chip
      (a TPU's layouts name another memory space as `S(n)`).
  """

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool

  @property
  def bytes(self) -> int:
    """Returns the size without padding."""
    return _BYTES.get(self.dtype, 0) * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Holds one line of a computation.

  Attributes:
    name: unique in the module.
    shapes: of the result; those of a tuple one after the other.
    opcode: such as 'fusion'.
    arguments: what stands between the parentheses.
    attributes: what follows them.
    root: whether it is the computation's result.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  arguments: str
  attributes: str
  root: bool

  @property
  def operands(self) -> list[str]:
    """Returns names of instructions of the same computation."""
    return _NAME.findall(self.arguments)

  @property
  def called(self) -> list[str]:
    """Returns names of the computations that it runs."""
    names = _CALLED.findall(self.attributes)
    for branches in _BRANCHES.findall(self.attributes):
      names += _NAME.findall(branches)
    return names

  @property
  def op_name(self) -> str:
    """Returns which line of the traced program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1) if found else ''


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """Holds a compiled program for one device.

  Attributes:
    computations: by name, each the instructions in order by name.
    entry: the computation that runs.
  """

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Reads `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry = None
  current: Computation | None = None
  for line in text.splitlines():
    if line.startswith(('%', 'ENTRY')) and line.endswith('{'):
      name = _NAME.search(line).group(1)
      current = computations.setdefault(name, {})
      entry = name if line.startswith('ENTRY') else entry
    elif line.startswith('}'):
      current = None
    elif current is not None and ' = ' in line:
      instruction = _instruction(line)
      current[instruction.name] = instruction
  if entry is None:
    raise ValueError('the text of the compiled program has no ENTRY')
  return Module(computations, entry)


def _instruction(line: str) -> Instruction:
  left, right = line.split(' = ', 1)
  end = _closing(right, 0) + 1 if right[0] == '(' else right.index(' ')
  shapes, rest = right[:end], right[end:].lstrip()
  start = rest.index('(')
  stop = _closing(rest, start)
  return Instruction(
    name=_NAME.search(left).group(1),
    shapes=_shapes(shapes),
    opcode=rest[:start],
    arguments=rest[start + 1 : stop],
    attributes=rest[stop + 1 :],
    root=left.lstrip().startswith('ROOT'),
  )


def _closing(text: str, start: int) -> int:
  """Returns where the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  raise ValueError(f'unbalanced parentheses: {text[start : start + 80]}')


def _shapes(text: str) -> tuple[Shape, ...]:
  found = []
  for dtype, dims, layout in _ARRAY.findall(text):
    space = re.search(r'S\((\d+)\)', layout)
    found.append(
      Shape(
        dtype,
        tuple(int(d) for d in dims.split(',') if d),
        space is None or space.group(1) == '0',
      )
    )
  return tuple(found)


def executed(
  module: Module, *, inside_fusions: bool = False
) -> Iterator[tuple[str, Instruction, int]]:
  """Yields what a step executes: (computation's name, it, how often).

  Loops are entered with their trip counts. All branches of a conditional
  count, so that it costs too much rather than too little.

  Args:
    module: the program.
    inside_fusions: also what fusions are made of, besides themselves.
  """
  yield from _executed(module, module.entry, 1, inside_fusions)


def _executed(module, name, count, inside_fusions):
  for instruction in module.computations[name].values():
    yield name, instruction, count
    opcode = instruction.opcode
    if opcode == 'while':
      trips = trip_count(module, instruction)
      body = re.search(r'body=%([\w.\-]+)', instruction.attributes).group(1)
      yield from _executed(module, body, count * trips, inside_fusions)
    elif opcode in ('call', 'conditional', 'async-start') or (
      opcode == 'fusion' and inside_fusions
    ):
      for called in instruction.called:
        yield from _executed(module, called, count, inside_fusions)


def trip_count(module: Module, loop: Instruction) -> int:
  """Returns how often a `while` runs its body.

  XLA notes it where it knows. Else the loop counts from 0 to a constant that
  its condition compares with, as `jax.lax.scan` writes loops, in steps that its
  body adds: 1, or 2 where a TPU's compiler has doubled a ring's steps.

  Raises:
    ValueError: it isn't such a loop.
  """
  known = _TRIP_COUNT.search(loop.attributes)
  if known:
    return int(known.group(1))
  condition, body = (
    module.computations[
      re.search(key + r'=%([\w.\-]+)', loop.attributes).group(1)
    ]
    for key in ('condition', 'body')
  )
  bounds = _constants(module, condition.values())
  places = {
    int(found.group(1))
    for i in condition.values()
    if i.opcode == 'get-tuple-element'
    and (found := re.search(r'index=(\d+)', i.attributes))
  }
  if len(bounds) != 1 or len(places) != 1:
    raise ValueError(f'the trip count of the loop {loop.name} is not known')
  step = _step(module, body, places.pop())
  if step is None:
    raise ValueError(f'the steps of the loop {loop.name} are not known')
  return -(-bounds.pop() // step)


def _constants(module: Module, instructions) -> set[int]:
  found = set()
  for instruction in instructions:
    if instruction.opcode == 'constant':
      found |= {int(v) for v in re.findall(r'^-?\d+$', instruction.arguments)}
    for called in instruction.called:
      found |= _constants(module, module.computations[called].values())
  return found


def _step(module: Module, body: Computation, place: int) -> int | None:
  """Returns what a loop's body adds to the counter at a place of its tuple."""
  root = next(i for i in body.values() if i.root)
  result = body[root.operands[place]]
  while result.opcode in ('copy', 'bitcast', 'convert'):
    result = body[result.operands[0]]
  if result.opcode == 'fusion':
    fused = module.computations[result.called[0]]
    outer = [body[name] for name in result.operands]
    root = next(i for i in fused.values() if i.root)
    added = _constants(module, fused.values())
    added |= _constants(module, outer)
    return added.pop() if root.opcode == 'add' and len(added) == 1 else None
  if result.opcode != 'add':
    return None
  added = _constants(module, [body[name] for name in result.operands])
  return added.pop() if len(added) == 1 else None
