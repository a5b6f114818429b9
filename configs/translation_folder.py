"""ViTUnet-S/16 between two folders of your own images, 256 px, 200 epochs.

    python main.py --config=configs/translation_folder.py \\
      --config.data.name=folder:PATH
    python main.py --config=configs/translation_folder.py:cpu \\
      --config.data.name=folder:PATH

PATH holds trainA/IMAGE and trainB/IMAGE and, if you have them, testA and testB,
in any format that Pillow reads. A tenth of the training images is held out to
choose the best checkpoint by. `configs/translation_folder.py:resnet` trains
CycleGAN's own generator in the place of a ViTUnet.

Hardware and time: about 4 hours for 1,000 images of each domain on one A100 (an
estimate from the FLOPs at a quarter of the peak, not a measurement); `:cpu` 20
minutes of CPU time, compilation and validations included, measured on a busy
machine (31 minutes there), which two free cores do in 10 to 15.

Expected: depends on the images; colors and textures follow within a few dozen
epochs, shapes hardly ever change. samples/ in the workdir shows it. `:cpu` on
the photos of apple2orange (360 and 360 to train on) ended with FIDs (tap 64 of
random weights, so uncalibrated) of 0.73 and 0.75 on its test part, against 1.16
of the untranslated images.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'released' or 'tiny'."""
  config = common.translation()
  config.data.name = 'folder:images'
  config.data.workers = 2
  config.model.block = 'vit'
  config.model.variant = 'S'
  config.model.patch_size = 16
  config.model.resample = 'space'
  return common.finish(config, arg)
