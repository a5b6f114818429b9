"""Our side of `experiments.spatial_parts.speed`."""

from collections.abc import Callable

from configs import monet2photo_vitunet_ti_cpu
from experiments.throughput import ours


def training_step(words: str) -> tuple[Callable[[], float], int]:
  """Returns a step at 64 px on random images; `words` choose the generator."""
  config = monet2photo_vitunet_ti_cpu.get_config(words)
  config.data.image_size, config.data.load_size = 64, 72
  return ours.stepper(ours.translation(config))
