"""Counts what an instruction of a compiled program costs: FLOPs and bytes.

    costs.matmul_flops(computation, instruction)
    costs.memory_bytes(module, computation, instruction)

Both for one execution on one device.
"""

import math
import re

import numpy as np

from vit22b_jax.plan import hlo
from vit22b_jax.runtime import chips

# These move nothing: names for what is there, and work that others account for.
_FREE = {
  *('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast'),
  *('while', 'conditional', 'call', 'async-start', 'after-all', 'domain'),
  *('partition-id', 'replica-id', 'opt-barrier'),
}
_FREE_CALLS = ('AllocateBuffer', 'ConcatBitcast')
# A float32 product on a GPU's tensor cores, as TensorFloat-32, costs so many
# bfloat16 ones.
TENSOR_FLOAT_PASSES = 2
# Second halves; and collectives, whose time goes by the wires.
_SECOND_HALVES = ('-done', '-update')
_COLLECTIVES = (
  *('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all'),
  *('collective-permute', 'collective-broadcast'),
)
# Read as much as they make, wherever it lies in the operand.
_SLICES = ('dynamic-slice', 'slice', 'gather')
_VIEWS = ('bitcast', 'reshape', 'get-tuple-element', 'copy', 'transpose')
_CONTRACTED = r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)'
# Fields of a window that count pairs, with what is meant without them.
_WINDOW = dict(size='1', stride='1', pad='0_0', lhs_dilate='1', rhs_dilate='1')


def is_collective(instruction: hlo.Instruction) -> bool:
  """Tells whether it moves data between devices."""
  return instruction.opcode.startswith(_COLLECTIVES)


def _target(instruction: hlo.Instruction) -> str:
  """Returns which function a custom call calls."""
  return instruction.find(r'custom_call_target="([^"]*)"')


def matmul_flops(
  computation: hlo.Computation, instruction: hlo.Instruction
) -> int:
  """Counts FLOPs of a product, two for each multiplication; else 0.

  TPU programs write matrix products as convolutions, padded and dilated where
  a batch axis became a spatial one: only products with elements that exist
  count, as in XLA's HloCostAnalysis.
  """
  target = _target(instruction)
  operands = [computation[name] for name in instruction.operands]
  arrays = [i.shapes[0] for i in operands if i.shapes]
  if instruction.opcode == 'dot' or target.startswith('__cublas$'):
    axes = re.findall(r'\d+', instruction.find(_CONTRACTED))
    contracted = math.prod(arrays[0].dims[int(axis)] for axis in axes)
    return 2 * math.prod(instruction.shapes[0].dims) * contracted
  if instruction.opcode == 'convolution' or target.startswith('__cudnn$conv'):
    return _convolution_flops(instruction, *arrays[:2], target)
  if target == 'tpu_custom_call' or target.startswith('__cudnn$fmha'):
    return _attention_flops([array.dims for array in arrays[:3]], target)
  return 0


def _attention_flops(shapes: list[tuple[int, ...]], target: str) -> int:
  """Counts the products of an attention that is a kernel of its own.

  Its operands are queries, keys and values, [B, N, L, K] on a TPU and
  [B, L, N, K] for cuDNN, which has two products forward and, backward, these
  five: logits again, and the gradients of map, values, queries and keys. Other
  kernels, without such operands, count nothing.
  """
  if len(shapes) < 3 or {len(dims) for dims in shapes} != {4}:
    return 0
  product = 2 * math.prod(shapes[0]) * shapes[1][2 - ('cudnn' in target)]
  return product * (5 if 'Backward' in target else 2)


def passes(
  computation: hlo.Computation, instruction: hlo.Instruction, chip: chips.Chip
) -> float:
  """Returns for how many bfloat16 products this one counts.

  On a TPU float32 at 'highest' precision takes six, at 'high' three
  (jax.lax.Precision). On a GPU it takes TENSOR_FLOAT_PASSES; at 'highest' it
  runs without tensor cores, at `float32_flops`.
  """
  if computation[instruction.operands[0]].shapes[0].dtype in ('bf16', 'f16'):
    return 1
  if _target(instruction).startswith(('__cublas', '__cudnn')):
    highest = '"HIGHEST"' in instruction.attributes
    return chip.flops / chip.float32_flops if highest else TENSOR_FLOAT_PASSES
  precision = instruction.find(r'operand_precision=\{(\w+)')
  return {'highest': 6, 'high': 3}.get(precision, 1)


def _convolution_flops(instruction, left, right, target) -> int:
  out = instruction.shapes[0]
  # cuDNN's gradients are labeled as the convolution that they are of.
  if 'BackwardInput' in target:
    left, out = out, left
  elif 'BackwardFilter' in target:
    right, out = out, right
  labels = instruction.find(r'dim_labels=(\w+_\w+->\w+)')
  inputs, kernel, outputs = re.split('_|->', labels)
  work = 2 * out.dims[outputs.index('b')] * out.dims[outputs.index('f')]
  work *= right.dims[kernel.index('i')]
  given = instruction.find(r'window=\{([^}]*)\}')
  fields = _WINDOW | dict(field.split('=') for field in given.split())
  for axis, label in enumerate(sorted(filter(str.isdigit, kernel))):
    each = (fields[key].split('x') for key in _WINDOW)
    # Of the padding '1_2' only what comes first moves the pairs.
    window = (int(v[axis % len(v)].split('_')[0]) for v in each)
    lengths = left.dims[inputs.index(label)], out.dims[outputs.index(label)]
    work *= _pairs(*lengths, *window)
  groups = instruction.find(r'batch_group_count=(\d+)')
  return work // int(groups or 1)


def _pairs(length, outputs, size, stride, low, dilation, spread) -> int:
  """Counts pairs of an output and a kernel element that meet an input."""
  place = np.arange(outputs)[:, None] * stride - low
  place = place + np.arange(size) * spread
  inside = (place >= 0) & (place <= (length - 1) * dilation)
  return int(np.sum(inside & (place % dilation == 0)))


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
  if is_collective(instruction) or _target(instruction) in _FREE_CALLS:
    return 0
  operands = [computation[name] for name in instruction.operands]
  if opcode == 'custom-call':
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
    return _hbm([instruction, *operands])
  fused = module.computations[instruction.called[0]]
  if any(map(is_collective, fused.values())):
    return 0
  read = sum(
    min(_hbm([operand]), _read(module, fused, index))
    for index, operand in enumerate(operands)
  )
  return read + _written(fused, instruction)


def _hbm(instructions) -> int:
  return sum(s.bytes for i in instructions for s in i.shapes if s.in_hbm)


def _read(module: hlo.Module, fused: hlo.Computation, index: int) -> int:
  """Counts bytes that a fused computation reads of its parameter."""
  return next(
    _used(module, fused, i)
    for i in fused.values()
    if i.opcode == 'parameter' and i.arguments == str(index)
  )


def _used(module, fused, source) -> int:
  total = 0
  for user in fused.values():
    if source.name not in user.operands:
      continue
    place = user.operands.index(source.name)
    if user.opcode in _SLICES:
      total += sum(s.bytes for s in user.shapes)
    elif user.opcode in _VIEWS and not user.root:
      total += _used(module, fused, user)
    elif user.opcode == 'fusion':
      total += _read(module, module.computations[user.called[0]], place)
    elif user.opcode != 'dynamic-update-slice' or place:
      return sum(s.bytes for s in source.shapes)
  return total


def _written(fused: hlo.Computation, fusion: hlo.Instruction) -> int:
  """Counts bytes that a fusion writes: all, or what it updates in place."""
  root = next(i for i in fused.values() if i.root)
  results = [root]
  if root.opcode == 'tuple':
    results = [fused[name] for name in root.operands]
  total = 0
  for result, shape in zip(results, fusion.shapes, strict=False):
    while result.opcode in _VIEWS and result.operands:
      result = fused[result.operands[0]]
    updated = result.opcode == 'dynamic-update-slice'
    made = fused[result.operands[1]].shapes[0] if updated else shape
    total += made.bytes * shape.in_hbm
  return total
