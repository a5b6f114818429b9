"""A small ViTUnet that turns apples into oranges and back, 64 px.

    make run-translation
    python main.py --config=configs/fruit_vitunet_ti.py

Hardware and time: about 5 minutes on two CPU cores, installation and
compilation included; nothing is downloaded.

Expected: sample grids in which apples turn orange and oranges into apples; FIDs
(tap 64 of random weights, so uncalibrated) of about 0.07 and 0.04, against 0.48
of the untranslated images: see experiments/fruit.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.translation()
  config.batch_size = 4
  config.duration = '3 epochs'
  config.data.name = 'fruit'
  config.data.image_size = 64
  config.data.load_size = 72
  config.model.block = 'vit'
  config.model.variant = 'Ti'
  config.model.depth = 6
  config.model.patch_size = 8
  config.model.resample = 'space'
  # Random weights need no download, and an early tap suits so few images.
  config.fid.weights = 'random:0'
  config.fid.tap = 64
  config.checkpoint.every = '1 epoch'
  config.eval.every = '1 epoch'
  config.log.samples = '30 steps'
  config.log.num_samples = 6
  config.log.every = '20 steps'
  return common.finish(config, arg)
