"""ViT-22B-S/4 from scratch on CIFAR-100, 32 px, 200 epochs.

    python main.py --config=configs/cifar100_vit22b_s.py

Hardware and time: 6 days on two CPU cores, by the speed of its first 200 steps
(experiments/cifar100_s); about 0.6 h on one A100, and at the paper's image size
(`configs/cifar100_vit22b_s.py:paper`) about 0.8 h there, by the FLOPs at a
quarter of the peak, not measured.

Expected: the paper's Figure 2 shows a top-1 of .504 and a top-5 of .790 at its
image size (`:paper`). At 32 px and patch 4, public ViTs trained for 200 epochs
reach about 52 % (github.com/kentaroy47/vision-transformers-cifar10).
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'paper' or 'tiny'."""
  config = common.classification()
  common.cifar100(config)
  config.model.block = 'vit22b'
  config.model.variant = 'S'
  config.optim.learning_rate = 3e-4
  return common.finish(config, arg)
