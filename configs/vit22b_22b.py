"""ViT-22B at full size: 48 blocks of width 6144, 224 px, patch 14.

    python main.py --config=configs/vit22b_22b.py --workdir=gs://BUCKET/vit22b
    python main.py --config=configs/vit22b_22b.py --mode=plan \
      --topology=v4:8x8x16

The recipe of "Scaling Vision Transformers to 22 Billion Parameters",
arXiv:2302.05442: the architecture of section 2 (parallel blocks, QK-norm, norms
without centering and bias, a MAP head), the hyperparameters of section 4.1
(177k steps of 65k images, reciprocal square root from a peak of 1e-3 with 10k
steps of warm-up and 30k of cool-down, weight decay 3.0 on the head and 0.03 on
the body). The optimizer is AdamW. JFT-4B is not public: the data are ImageNet
by default; any set of images works, as `--config.data.name=folder:PATH`.

Hardware and time: 1,024 TPU v4 chips (see the plan in experiments/scaling);
the authors reached 1,150 tokens a second and chip there, which makes about 29
days of these steps. `:tiny` takes seconds anywhere.

Expected: on JFT the authors report 89.5 % ImageNet top-1 of a linear probe
(their Table 1). From ImageNet alone a model of this size overfits: no number.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.classification()
  config.batch_size = 65_536
  config.duration = '177000 steps'
  config.sharding = 'fsdp'
  # XLA gathers over a whole 3-D torus by way of an all-reduce, twice the work:
  # replicas of 128 chips each leave it a ring or two.
  config.mesh.data = -1
  config.mesh.fsdp = 128
  common.imagenet(config)
  config.model.block = 'vit22b'
  config.model.variant = '22B'
  config.model.patch_size = 14
  config.model.norm = 'rms'
  config.model.pool = 'map'
  config.model.head_bias = -10.0
  config.model.remat = 'hidden'
  config.model.scan_layers = True
  config.model.dtype = 'bfloat16'
  config.optim.learning_rate = 1e-3
  config.optim.schedule = 'rsqrt'
  config.optim.warmup = '10000 steps'
  config.optim.weight_decay = 0.03
  config.optim.head_weight_decay = 3.0
  config.optim.clip_norm = 1.0
  config.optim.accumulate = 2
  config.loss.kind = 'sigmoid'
  config.checkpoint.every = '500 steps'
  config.eval.every = '5000 steps'
  config.eval.batch_size = 4096
  return common.finish(config, arg)
