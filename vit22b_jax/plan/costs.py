"""Counts what an instruction of a compiled program costs: FLOPs and bytes.

    costs.matmul_flops(computation, instruction)
    costs.memory_bytes(module, computation, instruction)

Both for one execution on one device.
"""

import math
import re

from vit22b_jax.plan import hlo

# These move nothing: names for what is there, and work that others account for.
_FREE = {
  'async-start',
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
# A GPU's float32 product costs so many bfloat16 ones: on its tensor cores, as
# TensorFloat-32, or on its vector units (H100: 495 and 67 TFLOP/s beside 989).
TENSOR_FLOAT_PASSES, FLOAT_PASSES = 2, 15
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
  """Tells whether it moves data between devices."""
  return instruction.opcode.startswith(_COLLECTIVES)


def matmul_flops(
  computation: hlo.Computation, instruction: hlo.Instruction
) -> int:
  """Counts FLOPs of a product, two for each multiplication; else 0.

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
  if _target(instruction).startswith('__cudnn$conv'):
    return _convolution_flops(computation, instruction)
  if _ATTENTION.search(instruction.attributes):
    return _attention_flops(computation, instruction)
  if _CUBLAS.search(instruction.attributes):
    return _cublas_flops(computation, instruction)
  return 0


def _cublas_flops(computation, instruction) -> int:
  """Counts a product that a GPU's program leaves to its library."""
  left = computation[instruction.operands[0]].shapes[0]
  found = re.search(
    r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes
  )
  axes = [int(n) for n in re.findall(r'\d+', found.group(1))]
  contracted = math.prod(left.dims[axis] for axis in axes)
  return 2 * math.prod(instruction.shapes[0].dims) * contracted


def _attention_flops(computation, instruction) -> int:
  """Counts the products of an attention that is a kernel of its own.

  Its operands are queries, keys and values, [B, N, L, K] on a TPU and
  [B, L, N, K] for cuDNN, which has two products forward and, backward, these
  five: logits again, and the gradients of map, values, queries and keys. Other
  kernels, without such operands, count nothing.
  """
  shapes = [computation[n].shapes[0].dims for n in instruction.operands[:3]]
  if len(shapes) < 3 or {len(dims) for dims in shapes} != {4}:
    return 0
  cudnn = '__cudnn$fmha' in instruction.attributes
  product = 2 * math.prod(shapes[0]) * shapes[1][1 if cudnn else 2]
  return product * (5 if 'Backward' in _target(instruction) else 2)


def _target(instruction: hlo.Instruction) -> str:
  """Returns which function a custom call calls."""
  found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
  return found.group(1) if found else ''


def passes(computation: hlo.Computation, instruction: hlo.Instruction) -> int:
  """Returns for how many bfloat16 products this one counts.

  On a TPU float32 at 'highest' precision takes six, at 'high' three
  (jax.lax.Precision). On a GPU it takes TENSOR_FLOAT_PASSES, at 'highest'
  FLOAT_PASSES.
  """
  if computation[instruction.operands[0]].shapes[0].dtype in ('bf16', 'f16'):
    return 1
  target = _target(instruction)
  if target.startswith(('__cublas', '__cudnn')):
    highest = '"HIGHEST"' in instruction.attributes
    return FLOAT_PASSES if highest else TENSOR_FLOAT_PASSES
  found = re.search(r'operand_precision=\{(\w+)', instruction.attributes)
  return {'highest': 6, 'high': 3}.get(found.group(1), 1) if found else 1


def _numbers(instruction: hlo.Instruction, key: str) -> list[int]:
  found = re.search(key + r'=\{([\d,]*)\}', instruction.attributes)
  return [int(n) for n in found.group(1).split(',') if n] if found else []


def _convolution_flops(computation, instruction) -> int:
  left, right = (computation[n].shapes[0] for n in instruction.operands[:2])
  out = instruction.shapes[0]
  # cuDNN's gradients are labeled as the convolution that they are of.
  if 'BackwardInput' in _target(instruction):
    left, out = out, left
  elif 'BackwardFilter' in _target(instruction):
    right, out = out, right
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
  """Returns each spatial axis's size, stride, low padding and dilations."""
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
  """Counts pairs of an output and a kernel element that meet an input."""
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
  """Counts bytes that it reads from and writes to the device's main memory.

  What a fusion slices counts as the slice, and what it updates in place as the
  update. Arrays on the chip count nothing; copies to and from there do.
  """
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith(_SECOND_HALVES):
    return 0
  if is_collective(instruction):
    return 0
  operands = [computation[name] for name in instruction.operands]
  if opcode == 'custom-call':
    if any(target in instruction.attributes for target in _FREE_CALLS):
      return 0
    # Less the workspaces of libraries, which are bytes.
    made = [s for s in instruction.shapes if s.dtype not in ('u8', 's8')]
    return _hbm(operands) + sum(s.bytes for s in made if s.in_hbm)
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
  """Counts bytes that a fused computation reads of its parameter."""
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
  """Counts bytes that a fusion writes: all, or what it updates in place."""
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
