"""torch-fidelity's side of the comparison: its Inception, the same weights."""

import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
import torch

from experiments.throughput import ours_inception, peers
from vit22b_jax.fid import inception_weights


def training_step(
  tap: int, batch_size: int, threads: int
) -> tuple[Callable[[], float], int]:
  """As `ours_inception.training_step`, in eager mode with default settings.

  Args:
    tap: 64, 192, 768 or 2048.
    batch_size: images.
    threads: that PyTorch may use.
  """
  torch.set_num_threads(threads)
  model = extractor(tap)
  pixels = ours_inception.images(batch_size).transpose(0, 3, 1, 2)
  images = torch.from_numpy(np.ascontiguousarray(pixels))

  def step() -> float:
    with torch.no_grad():
      (features,) = model(images)
    return features.mean().item()

  shapes = inception_weights.shapes((str(tap),))
  return step, sum(model.state_dict()[name].numel() for name in shapes)


def extractor(tap: int) -> torch.nn.Module:
  """torch-fidelity's extractor, with weights from a file as it wants them."""
  peers.import_torchvision()
  from torch_fidelity import feature_extractor_inceptionv3

  state = {
    name: torch.from_numpy(
      inception_weights.draw(str(ours_inception.SEED), name, shape)
    )
    for name, shape in inception_weights.shapes(('logits',)).items()
  }
  norms = [name for name in state if name.endswith('bn.weight')]
  for name in norms:
    count = name.replace('weight', 'num_batches_tracked')
    state[count] = torch.tensor(0)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'inception.pth'
    torch.save(state, path)
    return feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
      'peer', [str(tap)], feature_extractor_weights_path=str(path)
    )
