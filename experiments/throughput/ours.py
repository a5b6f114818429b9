"""Our side of the comparison: the training step that main.py runs."""

from collections.abc import Callable

import jax
import numpy as np

from configs import common
from vit22b_jax.data import catalog, splits
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification


def training_step(
  block: str, variant: str, batch_size: int
) -> tuple[Callable[[], float], int]:
  """A training step of `block` on random images of 32 px, patch 4.

  It clips, normalizes the uint8 images, computes the diagnostics and judges
  them, as every step of a run does; only the flips of the paper's augmentation
  are off, which the peer doesn't have either.

  Returns:
    The step, which returns its loss, and the number of parameters.
  """
  config = common.classification()
  config.batch_size = batch_size
  config.duration = '1000 steps'
  config.data.augment = 'none'
  config.model.block = block
  config.model.variant = variant
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, batch_size, np.int32)
  split = splits.ArraySplit(images, labels)
  names = tuple('0123456789')
  mesh = sharding.make_mesh()
  task = classification.Classification(
    config, mesh, names, catalog.Dataset(split, split, split, names)
  )
  state = task.init_state()
  batch = jax.device_put(
    {'image': images, 'label': labels}, sharding.batch_sharding(mesh)
  )
  loss = task.scalars.all.index('loss')

  def step() -> float:
    nonlocal state
    with sharding.mesh_context(task.mesh):
      state, scalars = task.train_step(state, batch)
    return float(scalars[loss])

  return step, sum(p.size for p in jax.tree.leaves(state.params))
