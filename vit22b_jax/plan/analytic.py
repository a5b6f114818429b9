"""Estimates a step without a compiler, where jax has none for the hardware.

    task, mesh = analytic.prepare(config, topologies.find('h100:8'))
    memory, work = analytic.estimate(task, mesh, config, state)

Weights and optimizer are exact. Activations, traffic and collectives come from
counting what a block keeps, reads and sends: an estimate, which `method` says.
TPU slices, and GPUs with jax's CUDA plugin, are compiled for instead, see
`planner`.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from vit22b_jax import errors
from vit22b_jax.models import kernels, vit
from vit22b_jax.plan import costs, gpu_targets, roofline, topologies
from vit22b_jax.plan.collectives import Collective
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification

# Of float32 products.
_PASSES = {
  'default': costs.TENSOR_FLOAT_PASSES,
  'highest': costs.FLOAT_PASSES,
}

# How often a step reads or writes what a block keeps without remat: values and
# their gradients, by products, norms and sums, in programs compiled for an H100
# (experiments/scaling).
_ACCESSES = 12


def prepare(
  config: ConfigDict, topology: topologies.Topology
) -> tuple[classification.Classification, AbstractMesh]:
  """Returns the task on one device at hand, and the mesh it would live on.

  Raises:
    UserError: it isn't a classifier's config, or doesn't suit the devices.
  """
  if config.task != 'classification':
    raise errors.UserError(
      f'--topology={topology.name}: only classifiers are estimated. Any task '
      f"is planned where jax's CUDA plugin compiles it: {gpu_targets.INSTALL}; "
      'or on the machine itself, with --topology=local.'
    )
  options = sharding.mesh_options(config)
  shape = sharding.mesh_shape(count=topology.size, **options)
  mesh = AbstractMesh(tuple(shape.values()), tuple(shape))
  data = classification.Classification.dataset_info(config)
  here = config.copy_and_resolve_references()
  with here.unlocked():
    here.model.attention = 'xla'  # cuDNN's can't be traced here
  one = sharding.make_mesh(devices=jax.devices()[:1])
  task = classification.Classification(here, one, list(data.names), data)
  sharding.validate_unsharded(
    task.logical_param_shapes, mesh, config.mesh.max_replicated
  )
  sharding.validate_batch_size(
    task.images_at_once(config), mesh, 'batch_size / optim.accumulate'
  )
  return task, mesh


@dataclasses.dataclass(frozen=True)
class _Step:
  """Describes a step by its sizes."""

  mesh: dict[str, int]  # sizes of the axes
  model: vit.ViT
  params: tuple[int, int]  # bytes of the weights: all, and one device's
  tokens: float  # of a microbatch on one device
  length: int  # tokens of an image
  parts: int  # microbatches of a step
  element: int  # bytes of a number in the compute dtype


def estimate(
  task: classification.Classification,
  mesh: AbstractMesh,
  config: ConfigDict,
  state: dict[str, int],
) -> tuple[dict[str, float], roofline.Work]:
  """Returns a device's bytes by what they hold, and its work in a step.

  `state` has the bytes of the task's state by kind, on its one device.
  """
  boxed, parts = task.logical_param_shapes, config.optim.accumulate
  held = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)),
    nn.unbox(boxed),
    sharding.param_shardings(boxed, mesh),
  )
  whole, part = state['parameters'], 4 * sum(jax.tree.leaves(held))
  model = task.model.clone(attention=config.model.attention)
  ways = mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP]
  length = (config.data.image_size // model.patch_size) ** 2
  length += model.pool == 'cls'
  step = _Step(
    mesh=dict(mesh.shape),
    model=model,
    params=(whole, part),
    tokens=config.batch_size / parts / ways * length,
    length=length,
    parts=parts,
    element=4 if model.dtype == 'float32' else 2,
  )
  memory = {
    **state,
    **{k: state[k] * part // whole for k in ('parameters', 'optimizer', 'ema')},
    'batch': state['batch'] // ways,
    'temporaries': _temporaries(step),
  }
  model_flops = task.flops_per_image * config.batch_size / mesh.size
  return memory, _work(step, model_flops, memory)


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


def _temporaries(step: _Step) -> float:
  """Returns bytes of what is kept, of one block at work, and of gradients."""
  whole, part = step.params
  model = step.model
  layer = whole / 4 / model.depth * step.element / step.mesh[sharding.TENSOR]
  kept = step.tokens * model.depth * _kept(step, model.remat)
  working = step.tokens * _kept(step, 'none') + 2 * layer
  return kept + working + part * (2 if step.parts > 1 else 1)


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
