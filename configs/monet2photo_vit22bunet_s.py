"""ViT22BUnet-S/32 between Monet's paintings and photos, 256 px, 200 epochs.

    python main.py --config=configs/monet2photo_vit22bunet_s.py

Hardware and time: about 27 h on one A100 (an estimate from the FLOPs at a
quarter of the peak, not a measurement).

Expected: the paper's Table 2 shows FIDs of 2.357 and 2.638 (A to B and B to A,
Monet to photo and back), at tap 64, after its own recipe, which is
`configs/monet2photo_vit22bunet_s.py:paper`. Such numbers don't compare with
those at the default tap of 2048.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'paper' or 'tiny'."""
  config = common.translation()
  config.data.name = 'cycle_gan/monet2photo'
  config.model.block = 'released'
  config.model.variant = 'S'
  return common.finish(config, arg)
