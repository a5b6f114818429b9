"""ViT-22B-Ti/4 on the 1,797 digits that ship with scikit-learn.

    make run
    python main.py --config=configs/digits_vit22b_ti.py

Hardware and time: 2 to 5 minutes on two CPU cores, by processor; nothing is
downloaded.

Expected: a test top-1 of at least 0.96 for each of the seeds 0, 1 and 2.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.classification()
  config.batch_size = 64
  config.duration = '70 epochs'
  config.data.name = 'digits'
  config.data.image_size = 8
  config.data.augment = 'crop'
  config.data.mean = (0.305, 0.305, 0.305)
  config.data.std = (0.376, 0.376, 0.376)
  config.model.block = 'vit22b'
  config.model.variant = 'Ti'
  config.model.patch_size = 4
  config.model.dropout = 0.1
  config.optim.learning_rate = 1e-3
  config.optim.schedule = 'cosine'
  config.optim.warmup = '10%'
  # 1,294 training images and 5 million parameters: everything that regularizes.
  config.optim.weight_decay = 0.3
  config.optim.ema = 0.99
  config.loss.label_smoothing = 0.1
  config.checkpoint.every = '10 epochs'
  config.eval.every = '10 epochs'
  config.eval.checkpoint = 'last'  # 144 images are too few to choose by
  config.log.every = '50 steps'
  return common.finish(config, arg)
