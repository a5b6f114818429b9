"""Compiles a run's training step for hardware by name, and reads what it costs.

    plan = planner.plan(config, topologies.find('v4:8x8x16'))
    plan['fits'], plan['predicted_step_seconds']

The step is the one that trains: model, loss, gradients, clipping, optimizer,
diagnostics, on the config's mesh. Nothing is computed and no data are read.
"""

import collections
import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from vit22b_jax import config as config_lib
from vit22b_jax import errors, tasks
from vit22b_jax.plan import hlo, roofline, topologies
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import base

PUBLISHED_MFU = 0.549  # ViT-22B on 1,024 TPU v4, arXiv:2302.05442

_UNPREDICTED = dict.fromkeys(
  (
    *('hardware_flops_per_device', 'predicted_step_seconds'),
    *('predicted_mfu_no_overlap', 'predicted_mfu_overlap'),
  )
)
_KINDS = {'params': 'parameters', 'ema': 'ema'}  # of fields of a state
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# XLA's words for a program that doesn't fit.
_NEEDED = re.compile(
  r'(?:space hbm\. Used |HLO temporaries \(|allocate )'
  r'([\d.]+) ?([KMGT]?)(?:iB)?'
)
_AVAILABLE = re.compile(r'(?: of |available HBM \()([\d.]+)([KMGT])(?: hbm|\))')


def plan(
  config: ConfigDict, topology: topologies.Topology, *, efficiency: float = 1.0
) -> dict[str, Any]:
  """Plans a run on some hardware: returns the content of plan.json.

  `efficiency` is the part of the peak that products are taken to reach.

  Raises:
    UserError: the mesh or the batch doesn't suit the hardware.
  """
  config_lib.resolve_dtype(config, topology.devices[0].platform)
  options = sharding.mesh_options(config)
  mesh = sharding.make_mesh(devices=topology.devices, **options)
  task = make_task(config, mesh)
  task.validate_sharding()
  found = {
    'topology': topology.name,
    'devices': mesh.size,
    'chip': topology.chip.name,
    'batch_size': config.batch_size,
    'peak_flops': topology.chip.flops,
    'hbm_capacity_bytes': topology.chip.hbm_bytes,
    'matmul_efficiency': efficiency,
    'config': config.to_dict(),
    'versions': topologies.compiler_versions(),
    'mesh': dict(mesh.shape),
    'total_steps': task.total_steps,
    'parameters': sum(x.size for x in jax.tree.leaves(task.abstract_params)),
    'model_flops_per_device': (
      task.flops_per_image * config.batch_size / mesh.size
    ),
    'memory': _state_bytes(task),
  }
  return found | _compiled(found, task, topology)


def _compiled(
  found: dict[str, Any], task: base.Task, topology: topologies.Topology
) -> dict[str, Any]:
  """Returns what the compiled program tells: memory, work, time."""
  start = time.monotonic()
  with sharding.mesh_context(task.mesh):
    lowered = task.train_step.lower(task.abstract_state, task.abstract_batch)
  try:
    compiled = topologies.compile_for(topology.devices[0], lowered)
  except jax.errors.JaxRuntimeError as error:
    return _too_large(found, error, time.monotonic() - start)
  told = {'compile_seconds': time.monotonic() - start}
  told |= _memory(found, topology, compiled.memory_analysis())
  try:
    module = hlo.parse(compiled.as_text())
    work = roofline.measure(module, found['mesh'], topology.chip)
  except ValueError as error:  # a form of XLA's text that is new
    return told | {'not_predicted': str(error), **_UNPREDICTED}
  # Fewer may do: a small map's borders, on a CPU Winograd's convolutions.
  missing = work.flops < 0.5 * found['model_flops_per_device']
  if missing and topology.devices[0].platform != 'cpu':
    reason = 'the program calls libraries whose arithmetic it does not tell'
    return told | {'not_predicted': reason, **_UNPREDICTED}
  return told | _costs(found, work, topology, task.mesh)


def make_task(config: ConfigDict, mesh: jax.sharding.Mesh) -> base.Task:
  """Returns the config's task, which knows its data set's sizes alone."""
  task_type = tasks.TASKS[config.task]
  data = task_type.dataset_info(config)
  return task_type(config, mesh, list(data.names), data)


def _device_bytes(tree: Any) -> int:
  """Returns the bytes of a tree of (abstract) arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _state_bytes(task: base.Task) -> dict[str, int]:
  """Returns a device's bytes by what they hold, before anything runs."""
  found = collections.Counter()
  for name, value in task.abstract_state.to_dict().items():
    kind = 'optimizer' if 'opt' in name else _KINDS.get(name, 'other_state')
    found[kind] += _device_bytes(value)
  found['batch'] = _device_bytes(task.abstract_batch)
  return dict(found)


def _memory(found, topology, stats) -> dict[str, Any]:
  """Returns what is allocated at the worst moment, and the program itself.

  A TPU's compiler holds the peak against the chip's memory; it knows which
  arrays share their place, which the sum of the sizes doesn't. Others tell the
  sum: what comes in, what goes out elsewhere, and temporaries.
  """
  peak, code = stats.peak_memory_in_bytes, stats.generated_code_size_in_bytes
  if not topology.chip.torus:
    peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    peak += stats.output_size_in_bytes - stats.alias_size_in_bytes
  rest = peak - sum(found['memory'].values())
  return {
    'memory': {**found['memory'], 'temporaries': rest, 'code': code},
    'hbm_bytes_per_device': peak + code,
    'fits': peak + code <= found['hbm_capacity_bytes'],
  }


def _too_large(found, error, seconds: float) -> dict[str, Any]:
  """Reads how much memory the compiler would have needed."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text:
    raise errors.UserError(
      f'XLA could not compile the step for {found["topology"]}: '
      f'{text.splitlines()[0]}'
    ) from error
  needed = [float(n) * _UNITS[unit] for n, unit in _NEEDED.findall(text)]
  available = _AVAILABLE.search(text)
  capacity = found['hbm_capacity_bytes']
  if available:
    capacity = float(available.group(1)) * _UNITS[available.group(2)]
  # Without a number: more than there is, and more than the state.
  total = max(needed, default=max(capacity, sum(found['memory'].values())))
  return {
    'fits': False,
    'hbm_bytes_per_device': total,
    'hbm_usable_bytes': capacity,
    'compile_seconds': seconds,
    'compiler_says': text.splitlines()[0],
    **_UNPREDICTED,
  }


def _costs(
  found: dict[str, Any],
  work: roofline.Work,
  topology: topologies.Topology,
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """Returns arithmetic and collectives, and the time that they take."""
  bandwidth = functools.lru_cache(
    functools.partial(topologies.bandwidth, topology, mesh)
  )
  efficiency = found['matmul_efficiency']
  time_ = roofline.predict(work, topology.chip, bandwidth, efficiency)
  peak, flops = topology.chip.flops, found['model_flops_per_device']
  hours = found['total_steps'] * found['devices'] / 3600
  return {
    'hardware_flops_per_device': work.flops,
    'recomputed_flops_per_device': work.recomputed_flops,
    'memory_traffic_bytes': work.bytes,
    'collectives': _collectives(work),
    'predicted_step_seconds': time_.no_overlap,
    'predicted_step_seconds_overlap': time_.overlap,
    'predicted_mfu_no_overlap': flops / (peak * time_.no_overlap),
    'predicted_mfu_overlap': flops / (peak * time_.overlap),
    'predicted_seconds': dataclasses.asdict(time_),
    'predicted_images_per_second': found['batch_size'] / time_.no_overlap,
    'predicted_chip_hours': time_.no_overlap * hours,
    'predicted_chip_hours_overlap': time_.overlap * hours,
  }


def _collectives(work: roofline.Work) -> list[dict[str, Any]]:
  """Returns the sums of each kind over each mesh axis, the most bytes first."""
  sums = collections.defaultdict(collections.Counter)
  for c in work.collectives:
    sums[c.kind, '+'.join(c.axes)].update(
      count=c.count,
      bytes=c.bytes * c.count,
      wire_bytes=c.wire_bytes * c.count,
    )
  rows = [{'kind': k, 'axes': axes, **sums[k, axes]} for k, axes in sums]
  return sorted(rows, key=lambda row: -row['wire_bytes'])
