"""ViTUnet-B/32 between apples and oranges, 256 px, 200 epochs.

    python main.py --config=configs/apple2orange_vitunet_b.py

Hardware and time: about 5 h on one A100 (an estimate from the FLOPs at a
quarter of the peak, not a measurement).

Expected: the paper's Table 2 shows FIDs of 3.781 and 1.872 (A to B and B to A,
apple to orange and back), at tap 64, after its own recipe, which is
`configs/apple2orange_vitunet_b.py:paper`. Such numbers don't compare with those
at the default tap of 2048.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'paper' or 'tiny'."""
  config = common.translation()
  config.data.name = 'cycle_gan/apple2orange'
  config.model.block = 'released_vit'
  config.model.variant = 'B'
  return common.finish(config, arg)
