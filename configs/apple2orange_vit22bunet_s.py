"""ViT22BUnet-S/32 between apples and oranges, 256 px, 200 epochs.

    python main.py --config=configs/apple2orange_vit22bunet_s.py

Hardware and time: about 4 h on one A100 (an estimate from the FLOPs at a
quarter of the peak, not a measurement).

Expected: the paper's Table 2 shows FIDs of 12.485 and 8.503 (A to B and B to A,
apple to orange and back), at tap 64, after its own recipe, which is
`configs/apple2orange_vit22bunet_s.py:paper`. Such numbers don't compare with
those at the default tap of 2048.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'paper' or 'tiny'."""
  config = common.translation()
  config.data.name = 'cycle_gan/apple2orange'
  config.model.block = 'released'
  config.model.variant = 'S'
  return common.finish(config, arg)
