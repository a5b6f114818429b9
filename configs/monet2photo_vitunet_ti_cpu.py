"""A small ViTUnet between Monet's paintings and photos, 128 px, for a CPU.

    python main.py --config=configs/monet2photo_vitunet_ti_cpu.py

Hardware and time: about 40 minutes on two CPU cores, with some 300 images of
each domain.

Expected: photos take on a painting's palette, paintings the contrast and the
colors of photos. FIDs (the paper's preset, of random weights, so uncalibrated)
of about 0.2 and 0.3, against 3.2 of the untranslated images: see
experiments/monet2photo_cpu.

The run is short, so what holds changes back is weakened: no identity loss,
half the cycle's weight, and discriminators at full speed.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.translation()
  config.duration = '5000 steps'
  config.data.name = 'cycle_gan/monet2photo'
  config.data.image_size = 128
  config.data.load_size = 143
  config.model.block = 'vit'
  config.model.variant = 'Ti'
  config.model.depth = 6
  config.model.patch_size = 8
  config.model.resample = 'space'
  config.loss.lambda_cycle = 5.0
  config.loss.lambda_identity = 0.0
  config.loss.discriminator_factor = 1.0
  config.fid.weights = 'random:0'
  config.fid.tap = 64
  config.fid.resize = 'tf1'
  config.fid.quantize = 'truncate'
  config.fid.num = 'min'
  config.checkpoint.every = '10%'
  config.eval.every = '10%'
  config.eval.batch_size = 8
  config.eval.checkpoint = 'last'
  config.log.samples = '5%'
  config.log.num_samples = 8
  config.log.every = '20 steps'
  return common.finish(config, arg)
