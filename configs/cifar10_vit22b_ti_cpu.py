"""ViT-22B-Ti/4 with half the depth on CIFAR-10, sized for two CPU cores.

    python main.py --config=configs/cifar10_vit22b_ti_cpu.py

Hardware and time: half an hour on two cores of an AMD Zen 5, an hour and a half
on two of a Zen 3.

Expected: a test top-1 of at least 0.55 after 8 epochs; the run whose files are
in experiments/cifar10_cpu is this one.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.classification()
  config.batch_size = 64
  config.duration = '8 epochs'
  config.data.name = 'cifar10'
  config.data.augment = 'standard'
  config.model.block = 'vit22b'
  config.model.variant = 'Ti'
  config.model.depth = 6
  config.model.pool = 'mean'
  # Fixed positions are there from the first step; learned ones that start
  # near 0 take epochs, and there are few.
  config.model.pos_embedding = 'sincos'
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.05
  config.optim.schedule = 'cosine'
  config.optim.warmup = '5%'
  config.optim.clip_norm = 1.0
  config.diagnostics.per_layer = True
  config.eval.batch_size = 250
  return common.finish(config, arg)
