"""ViT-22B-L/4 from scratch on CIFAR-100, 32 px, 200 epochs.

    python main.py --config=configs/cifar100_vit22b_l.py

Hardware and time: about 8 h on one A100, 70 days on two CPU cores; the paper's
image size (`configs/cifar100_vit22b_l.py:paper`) about 10 h on one A100.
Estimates from the FLOPs at a quarter of the peak, not measurements.

Expected: no published number at this size. The paper's Figure 2 ends at B; at
32 px and patch 4, smaller public ViTs trained for 200 epochs reach about 52 %
(github.com/kentaroy47/vision-transformers-cifar10).
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'paper' or 'tiny'."""
  config = common.classification()
  common.cifar100(config)
  config.model.block = 'vit22b'
  config.model.variant = 'L'
  config.optim.learning_rate = 5e-5
  return common.finish(config, arg)
