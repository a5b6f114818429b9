"""ViT-22B-L/14 on ImageNet from scratch, 224 px, on one board of eight chips.

    python main.py --config=configs/imagenet_vit22b_l.py
    python main.py --config=configs/imagenet_vit22b_l.py --mode=plan \
      --topology=v5e:2x4

Prepare `imagenet2012` with TFDS as array_record, or give a folder of images by
`--config.data.name=folder:PATH`.

Hardware and time: about 20 hours on eight TPU v5e chips. An estimate from the
FLOPs at half of the peak, not a measurement; the plan says more.

Expected: no published number of this block at this size. Plain ViTs of 0.1
billion weights reach 80 % top-1 from scratch with a recipe like this one
(arXiv:2205.01580); larger ones need stronger regularisation to do better.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.classification()
  config.batch_size = 1024
  config.duration = '90 epochs'
  config.sharding = 'fsdp'
  common.imagenet(config)
  config.data.augment = 'randaugment'
  config.model.block = 'vit22b'
  config.model.variant = 'L'
  config.model.patch_size = 14
  config.model.pool = 'mean'
  config.model.pos_embedding = 'sincos'
  config.model.remat = 'hidden'
  config.model.scan_layers = True
  config.model.dtype = 'bfloat16'
  config.optim.learning_rate = 3e-4
  config.optim.schedule = 'cosine'
  config.optim.warmup = '10000 steps'
  config.optim.weight_decay = 0.3
  config.optim.clip_norm = 1.0
  config.optim.accumulate = 2
  config.eval.every = '5 epochs'
  return common.finish(config, arg)
