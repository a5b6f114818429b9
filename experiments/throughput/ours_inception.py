"""Our side of the comparison: Inception's features as FID takes them."""

from collections.abc import Callable

import numpy as np

from vit22b_jax.fid import extractor, inception_weights

SEED = 0  # of the weights, the same on both sides


def training_step(tap: int, batch_size: int) -> tuple[Callable[[], float], int]:
  """Returns what computes features of a batch of uint8 images of 256 px.

  Args:
    tap: 64, 192, 768 or 2048.
    batch_size: images.

  Returns:
    The step, which returns the mean of the features, and the number of
    parameters in PyTorch's file that they need.
  """
  settings = extractor.Settings(f'random:{SEED}', tap, resize='tf1')
  inception = extractor.Extractor(settings, batch_size)
  batch = {'image': images(batch_size)}

  def step() -> float:
    (features,) = inception.features(batch)
    return float(features.mean())

  shapes = inception_weights.shapes((str(tap),)).values()
  return step, sum(int(np.prod(shape)) for shape in shapes)


def images(batch_size: int) -> np.ndarray:
  """Draws noise, uint8 [B, 256, 256, 3]."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (batch_size, 256, 256, 3), np.uint8)
