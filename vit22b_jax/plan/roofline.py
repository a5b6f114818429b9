"""Predicts how long a compiled step takes at least.

    work = roofline.measure(module, mesh_shape, chip)
    time = roofline.predict(work, chip, bandwidth_of)

A prediction, and an upper bound on utilization: products run at the chip's peak
times `efficiency`, everything else at the speed of its memory, collectives at
that of the links. Without overlap the three follow each other; with overlap
communication hides behind the others, or they behind it.
"""

import collections
import dataclasses
from collections.abc import Callable

from vit22b_jax.plan import collectives, costs, hlo
from vit22b_jax.runtime import chips


@dataclasses.dataclass(frozen=True)
class Operation:
  """Counts the work of one instruction on one device."""

  flops: int  # of matrix products
  passes: float  # bfloat16 products that the hardware makes of each
  bytes: int  # read from and written to memory
  count: int  # executions in a step


@dataclasses.dataclass(frozen=True)
class Work:
  """Counts the work of a step on one device."""

  operations: list[Operation]
  collectives: list[collectives.Collective]
  recomputed_flops: int  # of the products, those that remat repeats

  @property
  def flops(self) -> int:
    """Sums the FLOPs of matrix products in a step."""
    return sum(o.flops * o.count for o in self.operations)

  @property
  def bytes(self) -> int:
    """Sums the bytes that a step moves to and from memory."""
    return sum(o.bytes * o.count for o in self.operations)


def measure(
  module: hlo.Module, mesh_shape: dict[str, int], chip: chips.Chip
) -> Work:
  """Counts the work in a program that was compiled for a chip."""
  operations, recomputed = [], 0
  for name, instruction, count in hlo.executed(module):
    computation = module.computations[name]
    size = costs.memory_bytes(module, computation, instruction)
    flops, passes, again = _products(module, computation, instruction, chip)
    recomputed += again * count
    if size or flops:
      operations.append(Operation(flops, passes, size, count))
  found = collectives.find(module, mesh_shape)
  return Work(operations, found, recomputed)


def _products(module, computation, instruction, chip) -> tuple[int, float, int]:
  """Counts FLOPs, passes and recomputed FLOPs of an instruction."""
  flops = costs.matmul_flops(computation, instruction)
  passes = costs.passes(computation, instruction, chip) if flops else 1
  again = flops if 'rematted_computation' in instruction.op_name else 0
  if instruction.opcode == 'fusion':
    for called in map(module.computations.get, instruction.called):
      for inner in called.values():
        found = _products(module, called, inner, chip)
        flops, again = flops + found[0], again + found[2]
        passes = max(passes, found[1])
  return flops, passes, again


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Holds the seconds of a step on one device."""

  matmul: float  # products at peak
  memory: float  # what memory adds to that
  communication: dict[str, float]  # by mesh axes, such as 'data+fsdp'

  @property
  def no_overlap(self) -> float:
    """Returns the sum: one after the other."""
    return self.matmul + self.memory + sum(self.communication.values())

  @property
  def overlap(self) -> float:
    """Returns the longer of communication and the rest."""
    return max(self.matmul + self.memory, sum(self.communication.values()))


def predict(
  work: Work,
  chip: chips.Chip,
  bandwidth_of: Callable[[tuple[int, ...]], float],
  efficiency: float = 1.0,
) -> Prediction:
  """Predicts the seconds of a step from its work on one device.

  `bandwidth_of` gives the bytes/s of a group of devices, by positions in the
  mesh; `efficiency`, in (0, 1], is the part of the peak that products reach.
  """
  matmul = memory = 0.0
  for o in work.operations:
    arithmetic = o.flops * o.passes / (chip.flops * efficiency)
    matmul += arithmetic * o.count
    memory += max(0.0, o.bytes / chip.hbm_bandwidth - arithmetic) * o.count
  communication = collections.Counter()
  for c in work.collectives:
    seconds = c.wire_bytes / bandwidth_of(c.group)
    communication['+'.join(c.axes)] += seconds * c.count
  return Prediction(matmul, memory, dict(communication))
