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

_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
# Layouts write T(8,128) and S(1): an opcode is the first word in small letters.
_LINE = re.compile(
  r'\s*(ROOT )?%([\w.\-]+) = (.*?) ?\b([a-z][\w\-]*)\(([^)]*)\)(.*)'
)
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
  r'(%[\w.\-]+)|branch_computations=\{([^}]*)\}'
)
_SAME = ('copy', 'bitcast', 'convert')


@dataclasses.dataclass(frozen=True)
class Shape:
  """Describes one array of an instruction's result, on one device."""

  dtype: str  # XLA's name, such as 'bf16'
  dims: tuple[int, ...]
  in_hbm: bool  # not on the chip, which a TPU's layouts name as S(n)

  @property
  def bytes(self) -> int:
    """Returns the size without padding."""
    bits = re.search(r'\d+', self.dtype)
    size = int(bits.group()) // 8 if bits else self.dtype == 'pred'
    return size * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Holds one line of a computation."""

  name: str  # unique in the module
  shapes: tuple[Shape, ...]  # of the result; a tuple's one after the other
  opcode: str  # such as 'fusion'
  arguments: str  # what stands between the parentheses
  attributes: str  # what follows them
  root: bool  # whether it is the computation's result

  @property
  def operands(self) -> list[str]:
    """Returns names of instructions of the same computation."""
    return _NAME.findall(self.arguments)

  @property
  def called(self) -> list[str]:
    """Returns names of the computations that it runs."""
    found = _CALLED.findall(self.attributes)
    return [n for pair in found for n in _NAME.findall(''.join(pair))]

  def find(self, pattern: str) -> str:
    """Returns the first group of a pattern in the attributes, '' without."""
    found = re.search(pattern, self.attributes)
    return found.group(1) if found else ''

  @property
  def op_name(self) -> str:
    """Returns which line of the traced program it comes from."""
    return self.find(r'op_name="([^"]*)"')


Computation = dict[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class Module:
  """Holds a compiled program for one device."""

  computations: dict[str, Computation]  # by name
  entry: str  # the computation that runs


def parse(text: str) -> Module:
  """Reads `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry = None
  for line in text.splitlines():
    if line.startswith(('%', 'ENTRY')) and line.endswith('{'):
      name = _NAME.search(line).group(1)
      computation = computations[name] = {}
      entry = name if line.startswith('ENTRY') else entry
    elif computations and (found := _LINE.match(line)):
      root, name, shapes, *rest = found.groups()
      computation[name] = Instruction(
        name, _shapes(shapes), *rest, root is not None
      )
  if entry is None:
    raise ValueError('the text of the compiled program has no ENTRY')
  return Module(computations, entry)


def _shapes(text: str) -> tuple[Shape, ...]:
  return tuple(
    Shape(
      dtype,
      tuple(int(d) for d in dims.split(',') if d),
      re.search(r'S\([1-9]', layout) is None,
    )
    for dtype, dims, layout in _ARRAY.findall(text)
  )


def executed(
  module: Module, *, inside_fusions: bool = False
) -> Iterator[tuple[str, Instruction, int]]:
  """Yields what a step executes: (computation's name, it, how often).

  Loops are entered with their trip counts. All branches of a conditional
  count, so that it costs too much rather than too little. What fusions are made
  of comes besides themselves, if it is asked for.
  """
  entered = ('call', 'conditional', 'async-start')
  entered += ('fusion',) if inside_fusions else ()

  def walk(name, count):
    for instruction in module.computations[name].values():
      yield name, instruction, count
      if instruction.opcode == 'while':
        trips = trip_count(module, instruction)
        yield from walk(instruction.find(r'body=%([\w.\-]+)'), count * trips)
      elif instruction.opcode in entered:
        for called in instruction.called:
          yield from walk(called, count)

  yield from walk(module.entry, 1)


def trip_count(module: Module, loop: Instruction) -> int:
  """Returns how often a `while` runs its body.

  XLA notes it where it knows. Else, on TPUs, the loop counts from 0 to a
  constant that its condition compares with, as `jax.lax.scan` writes loops, in
  steps that its body adds: 1, or 2 where the compiler has doubled a ring's.
  Draws that are rejected (Mixup's Beta by `jax.random`) are repeated as often
  as chance has it, seldom: they count once.

  Raises:
    ValueError: it isn't such a loop.
  """
  if known := loop.find(r'"known_trip_count":\{"n":"(\d+)"'):
    return int(known)
  if 'jit(_gamma)' in loop.op_name:
    return 1
  condition, body = (
    module.computations[loop.find(key + r'=%([\w.\-]+)')]
    for key in ('condition', 'body')
  )
  bounds = _constants(module, condition.values())
  places = {i.find(r'index=(\d+)') for i in condition.values()} - {''}
  if len(bounds) == len(places) == 1:
    steps = _steps(module, body, int(places.pop()))
    if len(steps) == 1:
      return -(-bounds.pop() // steps.pop())
  raise ValueError(f'the trip count of the loop {loop.name} is not known')


def _constants(module: Module, instructions) -> set[int]:
  found = set()
  for instruction in instructions:
    if instruction.opcode == 'constant':
      found |= {int(v) for v in re.findall(r'^-?\d+$', instruction.arguments)}
    for called in instruction.called:
      found |= _constants(module, module.computations[called].values())
  return found


def _steps(module: Module, body: Computation, place: int) -> set[int]:
  """Returns what a loop's body adds to the counter at a place of its tuple."""
  root = next(i for i in body.values() if i.root)
  result = body[root.operands[place]]
  while result.opcode in _SAME:
    result = body[result.operands[0]]
  fused = module.computations[result.called[0]] if result.called else {}
  if next((i for i in fused.values() if i.root), result).opcode != 'add':
    return set()
  return _constants(module, [result, *(body[n] for n in result.operands)])
