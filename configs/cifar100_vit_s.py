"""ViT-S/4 from scratch on CIFAR-100, 32 px, 200 epochs.

    python main.py --config=configs/cifar100_vit_s.py

Hardware and time: about 0.6 h on one A100, 6 days on two CPU cores; the paper's
image size (`configs/cifar100_vit_s.py:paper`) about 0.8 h on one A100.
Estimates from the FLOPs at a quarter of the peak, not measurements.

Expected: the paper's Figure 2 shows a top-1 of .449 and a top-5 of .729 at its
image size (`:paper`). At 32 px and patch 4, public ViTs trained for 200 epochs
reach about 52 % (github.com/kentaroy47/vision-transformers-cifar10).
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'paper' or 'tiny'."""
  config = common.classification()
  common.cifar100(config)
  config.model.block = 'vit'
  config.model.variant = 'S'
  config.optim.learning_rate = 3e-4
  return common.finish(config, arg)
