"""ViT-22B-S/16 on your own images, one folder a class.

    python main.py --config=configs/folder.py --config.data.name=folder:PATH
    python main.py --config=configs/folder.py:cpu --config.data.name=folder:PATH

PATH holds train/CLASS/IMAGE and, if you have them, val/CLASS/IMAGE and
test/CLASS/IMAGE, in any format that Pillow reads. Without `val`, a stratified
tenth of `train` is held out. To fine-tune public weights of a ViT-S/16, add
`--config.model.block=vit --config.init_from=FILE.safetensors`, and either
`--config.optim.layer_decay=0.75` or, to train the head alone,
`--config.optim.freeze=backbone`. PATH/labels.csv says of images in any folder
which classes each has; add `--config.loss.kind=sigmoid`.

Hardware and time: about 1 hour for 10,000 images on one A100 (an estimate);
`:cpu` 15.5 minutes of CPU time, measured on a busy machine (48 minutes there),
which two quiet cores of an AMD EPYC do in about 10.

Expected: depends on the images; from scratch, a few thousand images a class
are needed before a ViT does well, which is what `init_from` is for. `:cpu` had
a test top-1 of 0.82 (validation 0.84) from 5,400 photos of cats, horses and
ships (CIFAR-10's, enlarged to 64 px).
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` holds words such as 'tiny'."""
  config = common.classification()
  config.batch_size = 64
  config.data.name = 'folder:images'
  config.data.image_size = 224
  config.data.augment = 'randaugment'
  config.data.mean = (0.485, 0.456, 0.406)  # of ImageNet
  config.data.std = (0.229, 0.224, 0.225)
  config.data.workers = 2
  config.model.block = 'vit22b'
  config.model.variant = 'S'
  config.model.patch_size = 16
  config.optim.learning_rate = 3e-4
  config.optim.schedule = 'cosine'
  config.optim.warmup = '5%'
  return common.finish(config, arg)
