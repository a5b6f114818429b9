"""Estimates a step without a compiler, where jax has none for the hardware.

    estimate = analytic.estimate(config, topologies.find('h100:8'))

Weights and optimizer are exact. Activations, traffic and collectives come from
counting what a block keeps, reads and sends: an estimate, which `method` says.
TPU slices, and GPUs with jax's CUDA plugin, are compiled for instead, see
`planner`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from vit22b_jax import durations, errors
from vit22b_jax.models import kernels, vit
from vit22b_jax.plan import costs, gpu_targets, roofline, topologies
from vit22b_jax.plan.collectives import Collective
from vit22b_jax.runtime import flops, sharding
from vit22b_jax.tasks import classification
from vit22b_jax.training import optim

# Of float32 products.
_PASSES = {
  'default': costs.TENSOR_FLOAT_PASSES,
  'highest': costs.FLOAT_PASSES,
}

# How often a step reads or writes what a block keeps without remat: values and
# their gradients, by products, norms and sums, in programs compiled for an H100
# (experiments/scaling).
_ACCESSES = 12


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Holds what is estimated of a step.

  Attributes:
    facts: those keys of plan.json that a compiled plan takes from the program.
    work: of the step on one device.
  """

  facts: dict[str, Any]
  work: roofline.Work


@dataclasses.dataclass(frozen=True)
class _Step:
  """Describes a step by its sizes.

  Attributes:
    mesh: sizes of the axes.
    model: the classifier.
    params: bytes of the float32 weights: all, and one device's.
    tokens: of a microbatch on one device.
    length: tokens of an image.
    parts: microbatches of a step.
    element: bytes of a number in the compute dtype.
  """

  mesh: dict[str, int]
  model: vit.ViT
  params: tuple[int, int]
  tokens: float
  length: int
  parts: int
  element: int


def estimate(config: ConfigDict, topology: topologies.Topology) -> Estimate:
  """Estimates a classifier's step.

  Raises:
    UserError: it isn't a classifier's config, or doesn't suit the devices.
  """
  if config.task != 'classification':
    raise errors.UserError(
      f'--topology={topology.name}: only classifiers are estimated. Any task '
      f"is planned where jax's CUDA plugin compiles it: {gpu_targets.INSTALL}; "
      'or on the machine itself, with --topology=local.'
    )
  mesh = sharding.mesh_shape(
    config.sharding, topology.size, **sharding.mesh_sizes(config.mesh)
  )
  data = classification.Classification.dataset_info(config)
  step, optimizer = _step(config, mesh, data)
  epoch = max(len(data.train) // config.batch_size, 1)
  memory = _memory(config, step, optimizer)
  total = sum(memory.values())
  per_image = flops.classifier_flops(step.model, config.data.image_size)
  facts = {
    'method': 'estimated',
    'mesh': mesh,
    'total_steps': durations.steps(config.duration, steps_per_epoch=epoch),
    'parameters': step.params[0] // 4,
    'model_flops_per_device': per_image * config.batch_size / topology.size,
    'memory': memory,
    'hbm_bytes_per_device': total,
    'fits': total <= topology.chip.hbm_bytes,
    'compile_seconds': None,
  }
  return Estimate(facts, _work(step, facts['model_flops_per_device'], memory))


def _step(config, mesh, data) -> tuple[_Step, int]:
  """Returns the step's sizes, and a device's bytes of optimizer state."""
  model = classification.build_model(config, len(data.names))
  side = config.data.image_size
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  # Its attention may not be one that can be traced here.
  init = model.clone(attention='xla').init
  boxed = jax.eval_shape(init, jax.random.key(0), images)['params']
  abstract = AbstractMesh(tuple(mesh.values()), tuple(mesh))
  shardings = sharding.param_shardings(boxed, abstract)
  sharding.validate_unsharded(boxed, abstract, config.mesh.max_replicated)
  params = nn.unbox(boxed)
  held = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)), params, shardings
  )
  whole = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  part = sum(jax.tree.leaves(held))
  tx, _ = optim.make(config.optim, total_steps=1, steps_per_epoch=1)
  state = jax.eval_shape(tx.init, params)
  optimizer = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(state))
  ways = mesh[sharding.DATA] * mesh[sharding.FSDP]
  micro = config.batch_size / config.optim.accumulate / ways
  if micro < 1 or micro != int(micro):
    raise errors.UserError(
      f'batch_size={config.batch_size} in optim.accumulate='
      f'{config.optim.accumulate} parts is not divisible by the {ways} devices '
      f'that share it (mesh data={mesh[sharding.DATA]} x fsdp='
      f'{mesh[sharding.FSDP]}).'
    )
  length = (side // model.patch_size) ** 2 + (model.pool == 'cls')
  step = _Step(
    mesh=mesh,
    model=model,
    params=(4 * whole, 4 * part),
    tokens=micro * length,
    length=length,
    parts=config.optim.accumulate,
    element=4 if model.dtype == 'float32' else 2,
  )
  return step, optimizer * part // whole


def _kept(step: _Step, remat: str) -> float:
  """Returns bytes kept for the backward pass by each token and block.

  Counted in units of the width: the stream 1, q k v 3, their norms 2, attended
  values 1, the branch's result 1, hidden units before and after the GELU; and
  attention's logits and map, unless cuDNN makes them anew ('auto' takes it
  where it can).
  """
  model = step.model
  hidden = model.mlp_dim / model.width
  units = {
    'full': 1,
    'hidden': 1 + hidden,
    'projections': 1 + 3 + hidden + 1,
    'none': 1 + 1 + 3 + 2 + 1 + 2 * hidden + 1,
  }[remat]
  size = units * model.width * step.element
  cudnn = model.attention != 'xla' and kernels.cudnn.supports(
    model.dtype, model.width // model.num_heads
  )
  if remat == 'none' and not cudnn:
    size += model.num_heads * step.length * (4 + step.element)
  return size / step.mesh[sharding.TENSOR]


def _memory(config, step: _Step, optimizer: int) -> dict[str, float]:
  whole, part = step.params
  model = step.model
  layer = whole / 4 / model.depth * step.element / step.mesh[sharding.TENSOR]
  kept = step.tokens * model.depth * _kept(step, model.remat)
  working = step.tokens * _kept(step, 'none') + 2 * layer
  gradients = part * (2 if step.parts > 1 else 1)
  return {
    'parameters': part,
    'optimizer': optimizer,
    'ema': part if config.optim.ema else 0,
    'temporaries': kept + working + gradients,
  }


def _work(step: _Step, model_flops: float, memory) -> roofline.Work:
  """Returns products, memory traffic and collectives of a step."""
  model = step.model
  d, f = model.width, model.mlp_dim
  attention = 2 * step.length * d
  forward = 4 * d**2 + 2 * d * f + attention
  again = {
    'none': 0,
    'projections': attention,
    'hidden': 3 * d**2 + attention,
    'full': 3 * d**2 + d * f + attention,
  }[model.remat]
  recomputed = model_flops / 3 * again / forward
  flops_ = model_flops + recomputed
  # The optimizer reads and writes weights and moments, and reads gradients.
  kept = step.tokens * model.depth * _kept(step, 'none') * step.parts
  touched = _ACCESSES * kept
  updates = 2 * (memory['parameters'] + memory['optimizer'])
  passes = 1 if step.element == 2 else _PASSES[model.precision]
  operations = [
    roofline.Operation(int(flops_), passes, 0, 1),
    roofline.Operation(0, 1, int(touched + updates + step.params[1]), 1),
  ]
  return roofline.Work(operations, _collectives(step), int(recomputed))


def _collectives(step: _Step) -> list[Collective]:
  mesh, model = step.mesh, step.model
  ids = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
  found = []

  def add(kind, axis, size, count, why):
    place = list(mesh).index(axis)
    if mesh[axis] > 1:
      group = np.moveaxis(ids, place, -1).reshape(-1, mesh[axis])[0]
      found.append(
        Collective(kind, int(size), tuple(group), (axis,), count, why)
      )

  tensor = mesh[sharding.TENSOR]
  weights = step.params[0] / 4 * step.element / tensor
  # Forward and backward: gathered weights are never kept.
  add('all-gather', sharding.FSDP, weights, 2 * step.parts, 'weights')
  add('reduce-scatter', sharding.FSDP, weights, step.parts, 'gradients')
  add('all-reduce', sharding.DATA, step.params[1], 1, 'gradients')
  tokens = step.tokens * model.width * step.element
  # In and out of each block, forward and backward; in again where recomputed.
  gathers = (2 + (model.remat != 'none')) * model.depth * step.parts
  scatters = 2 * model.depth * step.parts
  add('all-gather', sharding.TENSOR, tokens, gathers, 'tokens')
  add('reduce-scatter', sharding.TENSOR, tokens, scatters, 'tokens')
  return found
