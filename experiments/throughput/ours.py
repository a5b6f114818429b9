"""Our side of the comparisons: the training steps that main.py runs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import common
from vit22b_jax.data import catalog, splits
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import base, classification, cyclegan

Program = tuple[base.Task, dict[str, Any]]


def classifier(
  config: ConfigDict, num_classes: int = 10, mesh: Any = None
) -> Program:
  """Returns a classifier's task, and a batch of random images for its steps."""
  rng, side = np.random.default_rng(0), config.data.image_size
  images = rng.integers(0, 256, (config.batch_size, side, side, 3), np.uint8)
  labels = rng.integers(0, num_classes, config.batch_size, np.int32)
  split = splits.ArraySplit(images, labels)
  names = tuple(map(str, range(num_classes)))
  data = catalog.Dataset(split, split, split, names)
  mesh = mesh or sharding.make_mesh()
  task = classification.Classification(config, mesh, list(names), data)
  return task, _placed({'image': images, 'label': labels}, task.mesh)


def translation(config: ConfigDict, mesh: Any = None) -> Program:
  """Returns a CycleGAN's task, and a batch of random images for its steps."""
  rng, side = np.random.default_rng(0), config.data.image_size
  shape = (config.batch_size, side, side, 3)
  images = {domain: rng.integers(0, 256, shape, np.uint8) for domain in 'ab'}
  labels = np.zeros(config.batch_size, np.int32)
  pair = catalog.Pair(*(splits.ArraySplit(i, labels) for i in images.values()))
  data = catalog.Dataset(pair, pair, pair, ('a', 'b'))
  task = cyclegan.CycleGAN(
    config, mesh or sharding.make_mesh(), ['a', 'b'], data
  )
  return task, _placed(images, task.mesh)


def _placed(batch: dict[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
  return jax.device_put(batch, sharding.batch_sharding(mesh))


def stepper(program: Program) -> tuple[Callable[[], float], int]:
  """Returns a function that takes a step, and the number of parameters.

  The function returns the step's loss, once the step has ended.
  """
  task, batch = program
  state = task.init_state()
  loss = task.scalars.all.index('loss')

  def step() -> float:
    nonlocal state
    with sharding.mesh_context(task.mesh):
      state, scalars = task.train_step(state, batch)
    return float(scalars[loss])

  return step, sum(p.size for p in jax.tree.leaves(state.params))


def training_step(
  block: str, variant: str, batch_size: int, qk_norm: bool | None = None
) -> tuple[Callable[[], float], int]:
  """Returns the step of `block` on random images of 32 px, patch 4.

  It clips, normalizes the uint8 images, computes the diagnostics and judges
  them, as every step of a run does; only the flips of the paper's augmentation
  are off, which the peer doesn't have either. `qk_norm` replaces the block's.
  """
  config = common.classification()
  config.batch_size = batch_size
  config.duration = '1000 steps'
  config.data.augment = 'none'
  config.model.block = block
  config.model.variant = variant
  config.model.qk_norm = qk_norm
  return stepper(classifier(config))
