"""Our side of the translation step: the one that main.py runs."""

from collections.abc import Callable

from configs import common
from experiments.throughput import ours


def training_step(
  batch_size: int, image_size: int, patch: int
) -> tuple[Callable[[], float], int]:
  """Returns a CycleGAN step of two ViTUnet-S on random images.

  It flips the uint8 images at random, computes the diagnostics and judges them,
  as every step of a run does.
  """
  config = common.translation()
  config.batch_size = batch_size
  config.duration = '1000 steps'
  config.data.image_size = config.data.load_size = image_size
  config.model.patch_size = patch
  return ours.stepper(ours.translation(config))
