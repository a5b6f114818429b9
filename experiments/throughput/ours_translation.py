"""Our side of the translation step: the one that main.py runs."""

from collections.abc import Callable

import jax
import numpy as np

from configs import common
from vit22b_jax.data import catalog, splits
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import cyclegan


def training_step(
  batch_size: int, image_size: int, patch: int
) -> tuple[Callable[[], float], int]:
  """A CycleGAN step of two ViTUnet-S on random images.

  It flips the uint8 images at random, computes the diagnostics and judges them,
  as every step of a run does.

  Returns:
    The step, which returns the sum of its losses, and the number of parameters.
  """
  config = common.translation()
  config.batch_size = batch_size
  config.duration = '1000 steps'
  config.data.image_size = config.data.load_size = image_size
  config.model.patch_size = patch
  rng = np.random.default_rng(0)
  shape = (batch_size, image_size, image_size, 3)
  images = {domain: rng.integers(0, 256, shape, np.uint8) for domain in 'ab'}
  labels = np.zeros(batch_size, np.int32)
  pair = catalog.Pair(*(splits.ArraySplit(i, labels) for i in images.values()))
  mesh = sharding.make_mesh()
  task = cyclegan.CycleGAN(
    config, mesh, ['a', 'b'], catalog.Dataset(pair, pair, pair, ('a', 'b'))
  )
  state = task.init_state()
  batch = jax.device_put(images, sharding.batch_sharding(mesh))
  loss = task.scalars.all.index('loss')

  def step() -> float:
    nonlocal state
    with sharding.mesh_context(task.mesh):
      state, scalars = task.train_step(state, batch)
    return float(scalars[loss])

  return step, sum(p.size for p in jax.tree.leaves(state.params))
