"""What an instruction of a compiled program costs: FLOPs and memory traffic.

    costs.matmul_flops(computation, instruction)
    costs.memory_bytes(module, computation, instruction)

Both for one execution on one device.
"""

import math
import re

from vit22b_jax.plan import hlo

# What moves nothing: names for what is there, and what others account for.
_FREE = {
  'parameter',
  'constant',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
  'partition-id',
  'replica-id',
  'opt-barrier',
  'domain',
}
_ATTENTION = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha)')
_CUBLAS = re.compile(r'custom_call_target="__cublas\$')
_FREE_CALLS = ('"AllocateBuffer"', '"ConcatBitcast"')
# Their second half; and collectives, whose time goes by the wires.
_SECOND_HALVES = ('-done', '-update')
_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Read as much as they make, wherever it lies in the operand.
_SLICES = ('dynamic-slice', 'slice', 'gather')
_VIEWS = ('bitcast', 'reshape', 'get-tuple-element', 'copy', 'transpose')


def is_collective(instruction: hlo.Instruction) -> bool:
  """Whether it moves data between devices."""
  return instruction.opcode.startswith(_COLLECTIVES)


def matmul_flops(
  computation: hlo.Computation, instruction: hlo.Instruction
) -> int:
  """FLOPs of a product, two for each multiplication; 0 for anything else.

  TPU programs write matrix products as convolutions, padded and dilated where
  a batch axis became a spatial one: only products with elements that exist
  count, as in XLA's HloCostAnalysis.
  """
  if instruction.opcode == 'dot':
    left = computation[instruction.operands[0]].shapes[0]
    axes = _numbers(instruction, 'lhs_contracting_dims')
    contracted = math.prod(left.dims[axis] for axis in axes)
    return 2 * math.prod(instruction.shapes[0].dims) * contracted
  if instruction.opcode == 'convolution':
    return _convolution_flops(computation, instruction)
  if _ATTENTION.search(instruction.attributes):
    return _attention_flops(computation, instruction)
  if _CUBLAS.search(instruction.attributes):
    return _cublas_flops(computation, instruction)
  return 0


def _cublas_flops(computation, instruction) -> int:
  """A product that a GPU's program leaves to its library."""
  left = computation[instruction.operands[0]].shapes[0]
  found = re.search(
    r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes
  )
  axes = [int(n) for n in re.findall(r'\d+', found.group(1))]
  contracted = math.prod(left.dims[axis] for axis in axes)
  return 2 * math.prod(instruction.shapes[0].dims) * contracted


def _attention_flops(computation, instruction) -> int:
  """Both products of an attention that XLA has put into a kernel of its own.

  Its operands are queries, keys and values [B, N, L, K]; other kernels of that
  kind, which don't have them, count nothing.
  """
  shapes = [computation[n].shapes[0].dims for n in instruction.operands[:3]]
  if len(shapes) < 3 or {len(dims) for dims in shapes} != {4}:
    return 0
  return 4 * math.prod(shapes[0]) * shapes[1][2]


def passes(computation: hlo.Computation, instruction: hlo.Instruction) -> int:
  """How many bfloat16 products a TPU makes of this one.

  float32 at 'highest' precision takes six, at 'high' three
  (jax.lax.Precision); a GPU's float32 is not counted in such terms.
  """
  found = re.search(r'operand_precision=\{(\w+)', instruction.attributes)
  if found is None or computation[instruction.operands[0]].shapes[0].dtype in (
    'bf16',
    'f16',
  ):
    return 1
  return {'highest': 6, 'high': 3}.get(found.group(1), 1)


def _numbers(instruction: hlo.Instruction, key: str) -> list[int]:
  found = re.search(key + r'=\{([\d,]*)\}', instruction.attributes)
  return [int(n) for n in found.group(1).split(',') if n] if found else []


def _convolution_flops(computation, instruction) -> int:
  left, right = (computation[n].shapes[0] for n in instruction.operands[:2])
  out = instruction.shapes[0]
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  inputs, kernel, outputs = labels.groups()
  work = 2 * out.dims[outputs.index('b')] * out.dims[outputs.index('f')]
  work *= right.dims[kernel.index('i')]
  spatial = sorted(c for c in kernel if c.isdigit())
  windows = _windows(instruction, len(spatial))
  for label, window in zip(spatial, windows, strict=True):
    work *= _pairs(
      left.dims[inputs.index(label)], out.dims[outputs.index(label)], **window
    )
  groups = re.search(r'batch_group_count=(\d+)', instruction.attributes)
  return work // (int(groups.group(1)) if groups else 1)


def _windows(instruction, rank: int) -> list[dict]:
  """Of each spatial axis: size, stride, low padding and dilations."""
  found = re.search(r'window=\{([^}]*)\}', instruction.attributes)
  fields = dict(f.split('=') for f in found.group(1).split()) if found else {}

  def each(key, default):
    return fields[key].split('x') if key in fields else [default] * rank

  return [
    {
      'size': int(size),
      'stride': int(stride),
      'low': int(pad.split('_')[0]),
      'left_dilation': int(left),
      'right_dilation': int(right),
    }
    for size, stride, pad, left, right in zip(
      each('size', '1'),
      each('stride', '1'),
      each('pad', '0_0'),
      each('lhs_dilate', '1'),
      each('rhs_dilate', '1'),
      strict=True,
    )
  ]


def _pairs(
  length: int,
  outputs: int,
  *,
  size: int,
  stride: int,
  low: int,
  left_dilation: int,
  right_dilation: int,
) -> int:
  """Pairs of an output and a kernel element that meet an input element."""
  count = 0
  for out in range(outputs):
    for k in range(size):
      place = out * stride + k * right_dilation - low
      inside = 0 <= place < (length - 1) * left_dilation + 1
      count += inside and place % left_dilation == 0
  return count


def memory_bytes(
  module: hlo.Module,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> int:
  """Bytes that it reads from and writes to the device's main memory.

  What a fusion slices counts as the slice, and what it updates in place as the
  update. Arrays on the chip count nothing; copies to and from there do.
  """
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith(_SECOND_HALVES):
    return 0
  if is_collective(instruction):
    return 0
  operands = [computation[name] for name in instruction.operands]
  if opcode == 'custom-call' and any(
    target in instruction.attributes for target in _FREE_CALLS
  ):
    return 0
  if opcode.endswith('-start'):  # copy-start, slice-start: (to, from, ...)
    moved = min(s.bytes for s in instruction.shapes[:2])
    return moved * sum(s.in_hbm for s in instruction.shapes[:2])
  if opcode == 'dynamic-update-slice':
    return 2 * _hbm(operands[1:2])
  if opcode in _SLICES:
    return 2 * _hbm([instruction])
  if opcode != 'fusion':
    return _hbm([instruction]) + _hbm(operands)
  (name,) = instruction.called[:1]
  if any(map(is_collective, module.computations[name].values())):
    return 0
  read = sum(
    min(_hbm([operand]), _read(module, name, index))
    for index, operand in enumerate(operands)
  )
  return read + _written(module, name, instruction)


def _hbm(instructions) -> int:
  return sum(s.bytes for i in instructions for s in i.shapes if s.in_hbm)


def _parameter(computation: hlo.Computation, index: int) -> hlo.Instruction:
  return next(
    i
    for i in computation.values()
    if i.opcode == 'parameter' and i.arguments == str(index)
  )


def _read(module: hlo.Module, name: str, index: int) -> int:
  """Bytes that a fused computation reads of its parameter."""
  computation = module.computations[name]
  return _used(module, computation, _parameter(computation, index))


def _used(module, computation, source) -> int:
  total = 0
  for user in computation.values():
    if source.name not in user.operands:
      continue
    if user.opcode in _SLICES:
      total += sum(s.bytes for s in user.shapes)
    elif user.opcode == 'dynamic-update-slice' and (
      user.operands[0] == source.name
    ):
      continue
    elif user.opcode in _VIEWS and not user.root:
      total += _used(module, computation, user)
    elif user.opcode == 'fusion':
      place = user.operands.index(source.name)
      total += _read(module, user.called[0], place)
    else:
      return sum(s.bytes for s in source.shapes)
  return total


def _written(module, name, instruction) -> int:
  """Bytes that a fusion writes: all, or what it updates in place."""
  computation = module.computations[name]
  root = next(i for i in computation.values() if i.root)
  results = [root]
  if root.opcode == 'tuple':
    results = [computation[n] for n in root.operands]
  total = 0
  for result, shape in zip(results, instruction.shapes, strict=False):
    if not shape.in_hbm:
      continue
    while result.opcode in _VIEWS and result.operands:
      result = computation[result.operands[0]]
    if result.opcode == 'dynamic-update-slice':
      total += computation[result.operands[1]].shapes[0].bytes
    else:
      total += shape.bytes
  return total
