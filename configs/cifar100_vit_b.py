"""ViT-B/4 from scratch on CIFAR-100, 32 px, 200 epochs.

    python main.py --config=configs/cifar100_vit_b.py

Hardware and time: about 2 h on one A100, 20 days on two CPU cores; the paper's
image size (`configs/cifar100_vit_b.py:paper`) about 3 h on one A100.
Estimates from the FLOPs at a quarter of the peak, not measurements.

Expected: the paper's Figure 2 shows a top-1 of .471 and a top-5 of .748 at its
image size (`:paper`). At 32 px and patch 4, public ViTs trained for 200 epochs
reach about 52 % (github.com/kentaroy47/vision-transformers-cifar10).
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'paper' or 'tiny'."""
  config = common.classification()
  common.cifar100(config)
  config.model.block = 'vit'
  config.model.variant = 'B'
  config.optim.learning_rate = 1e-4
  return common.finish(config, arg)
