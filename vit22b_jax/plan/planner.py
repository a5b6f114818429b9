"""Compiles a run's training step for hardware by name, and reads what it costs.

    plan = planner.plan(config, topologies.find('v4:8x8x16'))
    plan['fits'], plan['predicted_step_seconds']

The step is the one that trains: model, loss, gradients, clipping, optimiser,
diagnostics, on the config's mesh. Nothing is computed and no data are read.
"""

import collections
import functools
import importlib.metadata
import math
import re
import time
from typing import Any

import jax

from vit22b_jax import errors, tasks
from vit22b_jax.plan import ahead, analytic, hlo, roofline, topologies
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import base

PUBLISHED_MFU = 0.549  # ViT-22B on 1,024 TPU v4, arXiv:2302.05442

_UNPREDICTED = {
  'hardware_flops_per_device': None,
  'predicted_step_seconds': None,
  'predicted_mfu_no_overlap': None,
  'predicted_mfu_overlap': None,
}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# What XLA says of a program that doesn't fit.
_NEEDED = re.compile(
  r'(?:space hbm\. Used |HLO temporaries \(|allocate )'
  r'([\d.]+) ?([KMGT]?)(?:iB)?'
)
_AVAILABLE = re.compile(r'(?: of |available HBM \()([\d.]+)([KMGT])(?: hbm|\))')


def plan(
  config: Any, topology: topologies.Topology, *, efficiency: float = 1.0
) -> dict[str, Any]:
  """What a run needs on some hardware: the content of plan.json.

  Args:
    config: the run's configuration.
    topology: the hardware.
    efficiency: part of the peak that matrix products are taken to reach.

  Raises:
    UserError: the mesh or the batch doesn't suit the hardware.
  """
  if topology.devices is None:
    return _estimated(config, topology, efficiency)
  mesh = sharding.make_mesh(
    config.sharding,
    **sharding.mesh_sizes(config.mesh),
    devices=topology.devices,
  )
  task = make_task(config, mesh)
  task.check_sharding()
  found = {
    **_header(config, topology, efficiency),
    'method': 'compiled',
    'mesh': dict(mesh.shape),
    'total_steps': task.total_steps,
    'parameters': count(task.abstract_weights['params']),
    'model_flops_per_device': (
      task.flops_per_image * config.batch_size / topology.size
    ),
    'memory': _state_bytes(task),
  }
  start = time.monotonic()
  lowered = task.lower_step()
  try:
    compiled = ahead.compile_for(topology.devices[0], lowered)
  except jax.errors.JaxRuntimeError as error:
    return found | _too_large(found, error, time.monotonic() - start)
  found['compile_seconds'] = time.monotonic() - start
  found |= _memory(found, topology, compiled.memory_analysis())
  try:
    work = roofline.measure(hlo.parse(compiled.as_text()), dict(mesh.shape))
  except ValueError as error:  # a form of XLA's text that is new
    return found | {'not_predicted': str(error), **_UNPREDICTED}
  # A CPU's program may do with fewer: Winograd's convolutions.
  missing = work.flops < 0.9 * found['model_flops_per_device']
  if missing and topology.devices[0].platform != 'cpu':
    reason = 'the program calls libraries whose arithmetic it does not tell'
    return found | {'not_predicted': reason, **_UNPREDICTED}
  found |= _arithmetic(found, work)
  bandwidth = functools.lru_cache(
    functools.partial(topologies.bandwidth, topology, mesh)
  )
  time_ = roofline.predict(work, topology.chip, bandwidth, efficiency)
  return found | predicted(found, topology, time_)


def make_task(config: Any, mesh: jax.sharding.Mesh) -> base.Task:
  """The config's task, knowing of its data set no more than the sizes."""
  task_type = tasks.named(config.task)
  data = task_type.facts(config)
  return task_type(config, mesh, task_type.names_of(data), data)


def _estimated(config, topology, efficiency) -> dict[str, Any]:
  """A plan for hardware that jax can't compile for without having it."""
  estimate = analytic.estimate(config, topology)
  found = _header(config, topology, efficiency) | estimate.facts
  found |= _arithmetic(found, estimate.work)
  bandwidth = functools.partial(topologies.bandwidth, topology, None)
  time_ = roofline.predict(estimate.work, topology.chip, bandwidth, efficiency)
  return found | predicted(found, topology, time_)


def _header(config, topology, efficiency) -> dict[str, Any]:
  return {
    'topology': topology.name,
    'devices': topology.size,
    'chip': topology.chip.name,
    'batch_size': config.batch_size,
    'peak_flops': topology.chip.flops,
    'hbm_capacity_bytes': topology.chip.hbm_bytes,
    'matmul_efficiency': efficiency,
    'config': config.to_dict(),
    'versions': {
      'jax': jax.__version__,
      'jaxlib': importlib.metadata.version('jaxlib'),
      'libtpu': topologies.libtpu_version(),
    },
  }


def count(tree: Any) -> int:
  """Numbers in a tree of (abstract) arrays."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> int:
  """Bytes of a tree of (abstract) arrays that one device holds."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


# Fields of the tasks' states, by what they are for.
_KINDS = {'params': 'parameters', 'ema': 'ema'}


def _state_bytes(task: base.Task) -> dict[str, int]:
  """Bytes of a device by what they hold, before anything is computed."""
  found = collections.Counter()
  for name, value in vars(task.abstract_state).items():
    kind = 'optimizer' if 'opt' in name else _KINDS.get(name, 'other_state')
    found[kind] += device_bytes(value)
  found['batch'] = device_bytes(task.abstract_batch)
  return dict(found)


def _memory(found, topology, stats) -> dict[str, Any]:
  """What the compiler allocates at the worst moment, and the program itself.

  A TPU's compiler holds the peak against the chip's memory; it knows which
  arrays share their place, which the sum of the sizes doesn't. Others tell the
  sum: what comes in, what goes out elsewhere, and temporaries.
  """
  state = sum(found['memory'].values())
  code = stats.generated_code_size_in_bytes
  peak = stats.peak_memory_in_bytes
  if not topology.chip.torus:
    peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    peak += stats.output_size_in_bytes - stats.alias_size_in_bytes
  total = peak + code
  kinds = {**found['memory'], 'temporaries': peak - state, 'code': code}
  return {
    'memory': kinds,
    'hbm_bytes_per_device': total,
    'fits': total <= found['hbm_capacity_bytes'],
  }


def _too_large(found, error, seconds: float) -> dict[str, Any]:
  """An answer too: the compiler says how much it would have needed."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text:
    raise errors.UserError(
      f'XLA could not compile the step for {found["topology"]}: '
      f'{text.splitlines()[0]}'
    ) from error
  needed = [float(n) * _UNITS[unit] for n, unit in _NEEDED.findall(text)]
  # Without a number: more than the state, which is known.
  total = max(needed, default=sum(found['memory'].values()))
  available = _AVAILABLE.search(text)
  capacity = found['hbm_capacity_bytes']
  if available:
    capacity = float(available.group(1)) * _UNITS[available.group(2)]
  return {
    'fits': False,
    'hbm_bytes_per_device': total,
    'hbm_usable_bytes': capacity,
    'compile_seconds': seconds,
    'compiler_says': text.splitlines()[0],
    **_UNPREDICTED,
  }


def _arithmetic(found, work: roofline.Work) -> dict[str, Any]:
  groups: dict[tuple[str, str], dict[str, Any]] = {}
  for c in work.collectives:
    axes = '+'.join(c.axes)
    row = groups.setdefault(
      (c.kind, axes),
      {'kind': c.kind, 'axes': axes, 'count': 0, 'bytes': 0, 'wire_bytes': 0},
    )
    row['count'] += c.count
    row['bytes'] += c.bytes * c.count
    row['wire_bytes'] += c.wire_bytes * c.count
  return {
    'hardware_flops_per_device': work.flops,
    'recomputed_flops_per_device': work.recomputed_flops,
    'memory_traffic_bytes': work.bytes,
    'collectives': sorted(groups.values(), key=lambda r: -r['wire_bytes']),
  }


def predicted(
  found: dict[str, Any],
  topology: topologies.Topology,
  time_: roofline.Prediction,
) -> dict[str, Any]:
  """Seconds, utilisation and chip-hours; a prediction."""
  peak = topology.chip.flops
  flops = found['model_flops_per_device']
  seconds = time_.no_overlap
  hours = found['total_steps'] * found['devices'] / 3600
  return {
    'predicted_step_seconds': seconds,
    'predicted_step_seconds_overlap': time_.overlap,
    'predicted_mfu_no_overlap': flops / (peak * seconds),
    'predicted_mfu_overlap': flops / (peak * time_.overlap),
    'predicted_seconds': {
      'matmul': time_.matmul,
      'memory': time_.memory,
      'communication': time_.communication,
    },
    'predicted_images_per_second': found['batch_size'] / seconds,
    'predicted_chip_hours': seconds * hours,
    'predicted_chip_hours_overlap': time_.overlap * hours,
  }
