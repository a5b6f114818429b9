"""ViT-22B-Ti/4 on the 1,797 digits that ship with scikit-learn.

    make run
    python main.py --config=configs/digits_vit22b_ti.py

Hardware and time: about 3 minutes on two CPU cores; nothing is downloaded.

Expected: a test top-1 of at least 0.96 for each of the seeds 0, 1 and 2.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.classification()
  config.batch_size = 64
  config.duration = '45 epochs'
  config.data.name = 'digits'
  config.data.image_size = 8
  config.data.augment = 'crop'
  config.data.mean = (0.305, 0.305, 0.305)
  config.data.std = (0.376, 0.376, 0.376)
  config.model.block = 'vit22b'
  config.model.variant = 'Ti'
  config.model.patch_size = 4
  config.optim.learning_rate = 5e-4
  config.optim.schedule = 'cosine'
  config.optim.warmup = '10%'
  config.checkpoint.every = '5 epochs'
  config.eval.every = '5 epochs'
  config.log.every = '10 steps'
  return common.finish(config, arg)
