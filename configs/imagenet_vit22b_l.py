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
(arXiv:2205.01580); larger ones need stronger regularization to do better.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.classification()
  common.imagenet_from_scratch(config)
  config.model.variant = 'L'
  config.optim.learning_rate = 3e-4
  config.optim.accumulate = 2
  return common.finish(config, arg)
