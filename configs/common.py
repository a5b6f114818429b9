"""Sections that the named runs share: defaults, one comment a key, and words.

    config = common.classification()  # or translation(), comparison()
    config.model.variant = 'Ti'
    return common.finish(config, arg)  # arg: 'tiny', 'paper', 'paper,tiny'

Every value is a raw choice, never computed from another key, so an override on
the command line can't leave a stale number behind. A key whose default is None
(a typed placeholder) takes what the block's preset or the variant says.
Durations are steps, epochs or percent: 500, '500 steps', '3 epochs', '10%'.
"""

from ml_collections import config_dict

placeholder = config_dict.placeholder  # None now, of a given type when set


def classification() -> config_dict.ConfigDict:
  """Sets a classifier's defaults: the paper's recipe at 32 px, patch 4."""
  c = config_dict.ConfigDict()
  c.task = 'classification'
  c.seed = 0  # initial weights, data order, validation part, augmentation
  c.batch_size = 128  # images a step, over all devices and processes
  c.duration = '200 epochs'  # length of the whole run
  c.sharding = 'data'  # over devices: data | fsdp | fsdp+tensor
  # Weights to fine-tune: a .safetensors or .npz file, or another run's workdir.
  c.init_from = ''
  c.profile = ''  # steps to trace, as '10-15', into WORKDIR/profile
  c.data = _data()
  c.model = _model()
  c.optim = _optim()
  c.loss = _loss()
  c.diagnostics = _diagnostics()
  c.checkpoint = _checkpoint()
  c.eval = _eval()
  c.log = _log()
  c.mesh = _mesh()
  return c


def translation() -> config_dict.ConfigDict:
  """Sets a translation's defaults: CycleGAN's recipe, 256 px, patch 32."""
  c = config_dict.ConfigDict()
  c.task = 'translation'
  c.seed = 0  # initial weights, data order, validation part, crops, pools
  c.batch_size = 1  # images of each domain a step, over all devices
  c.duration = '200 epochs'  # length of the whole run
  c.sharding = 'data'  # over devices: data | fsdp | fsdp+tensor
  c.init_from = ''  # the workdir of another translation to start from
  c.profile = ''  # steps to trace, as '10-15', into WORKDIR/profile
  c.data = _domains()
  c.model = _generator()
  c.discriminator = config_dict.ConfigDict()
  c.discriminator.name = 'patchgan70'  # patchgan70 | released
  c.optim = _gan_optim()
  c.loss = _gan_loss()
  c.fid = _fid()
  c.diagnostics = _diagnostics()
  c.checkpoint = _checkpoint()
  c.eval = _eval()
  c.eval.every = '10 epochs'  # duration between two validations
  c.eval.batch_size = 8  # images a step; None: fid.batch_size
  c.eval.fid = True  # measure FID and KID, which needs Inception's weights
  c.log = _log()
  c.log.samples = '1 epoch'  # duration between two grids of sample images
  c.log.num_samples = 4  # images of each domain in them
  c.mesh = _mesh()
  return c


def comparison() -> config_dict.ConfigDict:
  """Asks for the distance of two sets of images."""
  c = config_dict.ConfigDict()
  c.task = 'fid'
  c.a = ''  # a folder, tfds:NAME:SPLIT, WORKDIR:a2b, WORKDIR:b2a or FILE.npz
  c.b = ''  # likewise
  c.dir = ''  # where prepared TFDS sets lie; '': TFDS' own default
  c.infinity = False  # extrapolate to infinitely many images as well
  c.save_statistics = False  # write a.npz and b.npz beside fid.json
  c.fid = _fid()
  return c


def _data() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.name = 'cifar10'  # a TFDS name, 'folder:PATH' or 'digits'
  c.dir = ''  # where prepared TFDS sets lie; '': TFDS' own default
  c.image_size = 32  # pixels a side that the model sees
  c.load_size = placeholder(int)  # before the crop to that; None: image_size
  # Evaluations see that share of the side, resized; None: image_size pixels.
  c.eval_crop = placeholder(float)
  c.sampling = 'shuffle'  # shuffle | balanced (each class equally often)
  # none | paper | crop | standard | randaugment | strong; None in the keys from
  # crop_scale to mix_switch leaves them to this word.
  c.augment = 'paper'
  c.crop_scale = placeholder(tuple)  # random resized crop: shares of the area
  c.crop_ratio = placeholder(tuple)  # its width / height: from, to
  c.crop_padding = placeholder(int)  # else zeros around a random crop; -1: 1/8
  c.flip_horizontal = placeholder(float)  # probability of a mirror image
  c.flip_vertical = placeholder(float)  # probability of one upside down
  c.randaugment_layers = placeholder(int)  # operations on an image; 0: none
  c.randaugment_magnitude = placeholder(float)  # their strength: 0 to 10
  c.erase = placeholder(float)  # probability of an erased box
  c.mixup = placeholder(float)  # alpha of Mixup; 0: none
  c.cutmix = placeholder(float)  # alpha of CutMix; 0: none
  c.mix_switch = placeholder(float)  # probability of CutMix, if there are both
  c.mean = (0.4914, 0.4822, 0.4465)  # subtracted from RGB in [0, 1]
  c.std = (0.2023, 0.1994, 0.2010)  # then divided by
  c.val_fraction = 0.1  # of the training part, when there's no validation part
  c.split_seed = placeholder(int)  # chooses that part; None: seed
  c.allow_changes = (
    False  # resume on other images than those of the first start
  )
  c.cache_max_gb = 4.0  # largest decoded set to hold in memory
  c.max_corrupt = 0  # unreadable images to skip before failing
  c.workers = 0  # processes that decode; 0: in the main process
  return c


def cifar100(c: config_dict.ConfigDict) -> None:
  """Chooses CIFAR-100, its own mean and deviation; `:paper` has CIFAR-10's."""
  c.data.name = 'cifar100'
  c.data.mean = (0.5071, 0.4865, 0.4409)
  c.data.std = (0.2673, 0.2564, 0.2762)


def imagenet(c: config_dict.ConfigDict) -> None:
  """Chooses ImageNet at 224 px, decoded and cropped while training."""
  c.data.name = 'imagenet2012'
  c.data.image_size = 224
  c.data.augment = 'standard'
  c.data.mean = (0.5, 0.5, 0.5)
  c.data.std = (0.5, 0.5, 0.5)
  c.data.cache_max_gb = 0.0
  c.data.workers = 16


def imagenet_from_scratch(c: config_dict.ConfigDict) -> None:
  """Trains ViT-22B on ImageNet, patch 14, on one board; all but the size."""
  c.batch_size = 1024
  c.duration = '90 epochs'
  c.sharding = 'fsdp'
  imagenet(c)
  c.data.load_size = 256
  c.data.augment = 'randaugment'
  c.data.crop_scale = (0.05, 1.0)
  c.data.mixup = 0.2
  c.model.block = 'vit22b'
  c.model.patch_size = 14
  c.model.pool = 'mean'
  c.model.pos_embedding = 'sincos'
  c.model.remat = 'hidden'
  c.model.scan_layers = True
  c.model.dtype = 'bfloat16'
  c.optim.schedule = 'cosine'
  c.optim.warmup = '10000 steps'
  c.optim.weight_decay = 0.3
  c.optim.clip_norm = 1.0
  c.eval.every = '5 epochs'


def _domains() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.name = 'cycle_gan/apple2orange'  # a TFDS name, 'folder:PATH' or 'fruit'
  c.dir = ''  # where prepared TFDS sets lie; '': TFDS' own default
  c.image_size = 256  # pixels a side of what is translated
  c.load_size = 286  # pixels a side before the random crop to image_size
  # resize_and_crop | crop | scale_width | none
  c.preprocess = 'resize_and_crop'
  c.flip = True  # mirror training images at random
  # unpaired (each domain shuffles on its own) | index (image i of either
  # training part, after validation images are held out of each) |
  # paired (equal names in both folders, or pairs side by side in one file)
  c.pairing = 'unpaired'
  c.val_fraction = 0.1  # of the training part, since there's no validation part
  c.split_seed = placeholder(int)  # chooses that part; None: seed
  c.allow_changes = (
    False  # resume on other images than those of the first start
  )
  c.cache_max_gb = 4.0  # largest decoded set to hold in memory
  c.max_corrupt = 0  # unreadable images to skip before failing
  c.workers = 0  # processes that decode; 0: in the main process
  return c


def _model() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  # A row of models.vit.PRESETS: vit | vit22b | vit22b_mlp_norm | released_vit |
  # released | released_unnormed.
  c.block = 'vit22b'
  c.variant = 'S'  # Ti | S | B | L | H | 22B
  c.patch_size = 4  # pixels a side
  _block_fields(c)
  c.final_norm = placeholder(bool)  # norm before pooling
  c.head = placeholder(str)  # linear | mlp | mlp_bn
  c.head_bias = placeholder(float)  # initial bias of the logits
  c.pool = 'cls'  # cls | mean | map
  c.pos_embedding = 'learned'  # learned | sincos
  c.dropout = 0.0  # of embeddings and branches
  c.stochastic_depth = 0.0  # of the last block; grows linearly from 0
  # What the backward pass finds stored and does not compute again: everything |
  # the outputs of weight products | hidden units of the MLPs | nothing.
  c.remat = 'none'  # none | projections | hidden | full
  c.scan_layers = False  # one compiled block for all, their weights stacked
  _compute_fields(c)
  return c


def _generator() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.generator = 'vitunet'  # vitunet | resnet (CycleGAN's own)
  # The word `resnet` sets what only a ViTUnet reads, which is all up to
  # `attention`, to None.
  # A row of models.vit.PRESETS: vit | vit22b | vit22b_mlp_norm | released_vit |
  # released | released_unnormed.
  c.block = 'released_vit'
  c.variant = 'S'  # Ti | S | B | L | H | 22B
  c.patch_size = 32  # pixels a side
  # Resample the channel axis, as released, or the grid of tokens.
  c.resample = 'channels'  # channels | space
  _block_fields(c)
  c.dropout = placeholder(float)  # of embeddings and branches; None: 0
  _compute_fields(c)
  c.attention = placeholder(str)  # auto (also if None) | xla | cudnn
  c.blocks = placeholder(int)  # resnet alone: residual blocks; None: 9
  return c


def _block_fields(c: config_dict.ConfigDict) -> None:
  """Adds what None leaves to the block's preset or to the variant."""
  c.depth = placeholder(int)  # blocks
  c.width = placeholder(int)  # of the residual stream
  c.mlp_dim = placeholder(int)  # hidden units of each MLP
  c.num_heads = placeholder(int)  # attention heads; divides width and mlp_dim
  c.pre_norm = placeholder(bool)  # norm before each branch
  c.qk_norm = placeholder(bool)  # norm of queries and keys
  c.mlp_norm = placeholder(bool)  # norm of the MLP's output (the paper's Eq. 2)
  c.sum_norm = placeholder(bool)  # norm of the branches' sum
  c.norm = placeholder(str)  # layer | rms
  c.norm_scale = placeholder(bool)  # norms have a learned scale
  c.norm_bias = placeholder(bool)  # norms have a learned bias
  c.eps = placeholder(float)  # of every norm
  c.qkv_bias = placeholder(bool)  # queries, keys and values have a bias
  # head: 1/sqrt(head_dim) | width: 1/sqrt(width)
  c.softmax_scale = placeholder(str)
  c.init = placeholder(str)  # vit | torch


def _compute_fields(c: config_dict.ConfigDict) -> None:
  # cudnn: flash attention, for half precision on NVIDIA GPUs. auto: there, but
  # for what needs the map (per_layer) or second derivatives (gradient penalty).
  c.attention = 'auto'  # auto | xla | cudnn
  # Of compute. auto: bfloat16 on GPUs and TPUs, float32 on CPUs.
  c.dtype = 'auto'  # auto | float32 | bfloat16 | float16
  c.precision = 'default'  # of matrix products: default | highest


def _optim() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.name = 'adamw'  # adamw | adam | sgd | adagrad
  c.learning_rate = 5e-4  # at the schedule's peak
  # Batch that learning_rate is meant for: other sizes scale it; 0 = no scaling.
  c.base_batch_size = 0
  c.b1 = 0.9  # adam, adamw: decay of the first moment
  c.b2 = 0.999  # adam, adamw: decay of the second moment
  c.eps = 1e-8  # adam, adamw, adagrad: added to the denominator
  c.momentum = 0.9  # sgd
  c.weight_decay = 1e-4  # times the learning rate; not in the gradient
  c.head_weight_decay = placeholder(float)  # the head's; None: weight_decay
  c.decay = 'matrices'  # what decays: matrices | all
  c.clip_norm = 10.0  # largest global gradient norm; 0 = no clipping
  c.schedule = 'multistep'  # multistep | cosine | rsqrt | constant
  c.warmup = '0 steps'  # duration of the linear rise from 0
  c.layer_decay = 1.0  # factor of the rate for each layer below the head
  # What keeps its weights; backbone: all but the head.
  c.freeze = 'none'  # none | backbone
  c.accumulate = 1  # parts of a batch computed one by one, to save memory
  # Decay of averaged weights, evaluated in place; 0 = off. At first it is less:
  # step n has (1 + n) / (10 + n) at most.
  c.ema = 0.0
  return c


def _gan_optim() -> config_dict.ConfigDict:
  """Sets up either optimizer: the generators' and the discriminators'."""
  c = _optim()
  c.name = 'adam'
  c.learning_rate = 2e-4
  c.b1 = 0.5
  c.weight_decay = 0.0
  c.clip_norm = 0.0
  # multistep | cosine | rsqrt | constant | linear | linear_released
  c.schedule = 'linear'
  c.decay_start = '50%'  # duration before a linear schedule falls
  c.update_order = 'generators'  # the first: generators | discriminators
  c.pool_size = 50  # earlier fakes that a discriminator sees as well; 0 = none
  del c.accumulate, c.ema, c.head_weight_decay, c.layer_decay, c.freeze
  return c


def _loss() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  # softmax (one class an image) | sigmoid (each class for itself; labels.csv)
  c.kind = 'softmax'
  # Weight of a class's images: none | balanced (as rare as it is) | numbers in
  # the order of the classes, such as '1,2.5,1'.
  c.class_weights = 'none'
  c.label_smoothing = 0.0  # in [0, 1)
  c.input_gradient_penalty = 0.0  # lambda of the squared input gradient
  return c


def _gan_loss() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.gan = 'lsgan'  # lsgan | vanilla
  c.lambda_cycle = 10.0  # weight of the cycle consistency
  c.lambda_identity = 0.5  # weight of the identity loss, times lambda_cycle
  c.lambda_paired = 0.0  # weight of the L1 to the other image of a pair
  c.discriminator_factor = 0.5  # weight of the discriminators' loss
  return c


def _fid() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.weights = ''  # '': the public release | a file | 'random:SEED'
  c.tap = 2048  # features: 64 | 192 | 768 | 2048
  c.resize = 'clean'  # to 299 px: clean | tf1 | torch (as pytorch-fid)
  c.quantize = 'round'  # images to uint8: round | truncate | none
  c.num = 'all'  # images: all | min (as many as the smaller domain has)
  c.batch_size = 16  # images a step
  c.kid_subsets = 100  # of the kernel distance
  c.kid_subset_size = 1000  # images in each, at most
  return c


def _diagnostics() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.per_layer = False  # columns for each block in diagnostics.csv
  c.on_explosion = 'record'  # record | skip_step | halt
  c.max_logit = 4000.0  # an event above it (the paper's Figure 1 caps there)
  c.max_abs_grad = 4000.0  # an event above it
  c.zscore = 20.0  # an event above so many robust deviations
  c.window = 200  # steps that the robust median and deviation look back
  c.ignore = '100 steps'  # duration of start-up in which spikes are transients
  return c


def _checkpoint() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.every = '1 epoch'  # duration between two saves
  c.minutes = 0.0  # save also after so many minutes; 0 = never
  c.keep = 2  # newest checkpoints to keep
  c.keep_best = 1  # best by validation (top-1 or FID) to keep as well
  return c


def _eval() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.every = '1 epoch'  # duration between two validations
  c.batch_size = placeholder(int)  # images a step; None: batch_size
  c.early_stop = 0  # stop after so many without a new best; 0 = never
  c.checkpoint = 'best'  # weights for the test part: best | last
  c.test = True  # evaluate on the test part at the end; searches don't
  return c


def _log() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.every = '50 steps'  # duration between two rows of metrics.jsonl
  c.tensorboard = True  # write TensorBoard events as well
  c.wandb = ''  # project of Weights & Biases to write to; '': none
  return c


def _mesh() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  # None: what `sharding` says, so that -1, the remaining devices, is the one
  # that a number of devices leaves open.
  c.data = placeholder(int)  # devices over which batches are split
  c.fsdp = placeholder(int)  # over which batches and parameters are split
  c.tensor = placeholder(int)  # over which heads and hidden units are split
  c.max_replicated = 0.05  # share of weights that may miss such a split
  return c


def finish(config: config_dict.ConfigDict, arg: str) -> config_dict.ConfigDict:
  """Applies the comma-separated words of `arg` and locks the config.

  Args:
    config: a config that this call may change.
    arg: what followed the colon on the command line, '' for nothing.

  Returns:
    The same config, locked against keys that don't exist.

  Raises:
    ValueError: a word is unknown; the message lists the known ones.
  """
  words = WORDS[config.task]
  for word in filter(None, (w.strip() for w in arg.split(','))):
    if word not in words:
      known = ', '.join(words)
      raise ValueError(f'unknown word {word!r} after the colon; known: {known}')
    words[word](config)
  return config.lock()


def _paper(c: config_dict.ConfigDict) -> None:
  """Takes the paper's image size, patch, batch and mixed precision."""
  c.data.image_size = 224
  c.model.patch_size = 16
  c.batch_size = 128
  c.model.dtype = 'bfloat16'
  if c.data.name == 'cifar100':
    fresh = _data()
    c.data.mean, c.data.std = fresh.mean, fresh.std


def _strong(c: config_dict.ConfigDict) -> None:
  """Trains from scratch by DeiT's parts (arXiv:2012.12877), milder.

  It is made for long trainings: over 12 epochs of CIFAR-10 it takes two tenths
  from a small model's top-1 (experiments/figure2_classification).
  """
  c.data.augment = 'strong'
  c.data.mixup = None
  if c.data.image_size > 64:
    c.data.crop_scale = (0.35, 1.0)
  if c.data.name == 'digits':  # a mirror makes them other things
    c.data.flip_horizontal = 0.0
  c.loss.label_smoothing = 0.1
  c.model.stochastic_depth = 0.1
  c.optim.name = 'adamw'
  c.optim.learning_rate = 1e-3
  c.optim.weight_decay = 0.05
  c.optim.schedule = 'cosine'
  c.optim.warmup = '5%'
  c.optim.clip_norm = 1.0
  c.optim.ema = 0.999


def _cpu(c: config_dict.ConfigDict) -> None:
  """Learns on two CPU cores in about ten minutes: half a Ti, 64 px."""
  if c.data.image_size > 64:
    c.data.image_size, c.model.patch_size = 64, 8
    c.data.load_size = None
  if c.data.augment == 'paper':  # upside down, too, for long runs
    c.data.augment = 'standard'
  c.model.variant = 'Ti'
  c.model.depth = 6
  c.model.pool = 'mean'
  # There from the first step, while learned positions take epochs.
  c.model.pos_embedding = 'sincos'
  c.batch_size = 64
  c.optim.accumulate = 1
  c.optim.learning_rate = 1e-3
  c.optim.weight_decay = 0.05
  c.optim.schedule = 'cosine'
  c.optim.warmup = '10%'
  c.optim.clip_norm = 1.0
  _in_ten_parts(c, '600 steps')


def _in_ten_parts(c: config_dict.ConfigDict, duration: str) -> None:
  c.duration = duration
  c.checkpoint.every = '10%'
  c.eval.every = '10%'
  c.log.every = '20 steps'
  c.data.workers = 0
  c.sharding = 'data'
  c.mesh.data = c.mesh.fsdp = None


def _tiny(c: config_dict.ConfigDict) -> None:
  """Takes one narrow block and a few steps: for tests and first looks."""
  c.model.depth = 1
  c.model.width = 32
  c.model.mlp_dim = 64
  c.model.num_heads = 2
  c.batch_size = 8
  if c.optim.accumulate > 1:
    c.batch_size, c.optim.accumulate = 16, 2
  c.eval.batch_size = None
  if c.data.name == 'imagenet2012':  # nobody has it for a first look
    c.data.name = 'digits'
    c.data.image_size = 4 * c.model.patch_size
    c.data.workers = 0
  c.mesh.data = c.mesh.fsdp = None  # the preset's, on however many devices
  _short(c)


def _short(c: config_dict.ConfigDict) -> None:
  c.duration = '4 steps'
  c.checkpoint.every = '2 steps'
  c.eval.every = '2 steps'
  c.log.every = '1 step'


def _cyclegan(c: config_dict.ConfigDict) -> None:
  """Restores CycleGAN's recipe (Zhu et al. 2017, arXiv:1703.10593, section 4).

  It is the default; a word sets every key of it, whatever a file changed.
  """
  fresh = translation().to_dict()
  for key in ('batch_size', 'duration'):
    c[key] = fresh[key]
  for section in ('discriminator', 'optim', 'loss'):
    c[section].update(fresh[section])
  for key in ('image_size', 'load_size', 'preprocess', 'flip', 'pairing'):
    c.data[key] = fresh['data'][key]
  c.model.dtype = fresh['model']['dtype']


def _released(c: config_dict.ConfigDict) -> None:
  """Takes the paper's recipe, as its authors released it: where it differs."""
  _cyclegan(c)
  c.batch_size = 32
  c.model.dtype = 'float16'
  c.data.load_size = 256
  c.data.flip = False
  c.data.pairing = 'index'
  c.discriminator.name = 'released'
  c.optim.schedule = 'linear_released'
  c.optim.update_order = 'discriminators'
  c.optim.pool_size = 0
  c.loss.discriminator_factor = 1.0
  c.loss.lambda_identity = 0.0


def _resnet(c: config_dict.ConfigDict) -> None:
  """Puts CycleGAN's own generator in the place of a ViTUnet."""
  kept = {'dtype': c.model.dtype, 'precision': c.model.precision}
  c.model.update(dict.fromkeys(c.model))
  c.model.update(kept)
  c.model.generator = 'resnet'
  c.model.blocks = 9


def _paper_translation(c: config_dict.ConfigDict) -> None:
  """Takes the released recipe and sizes, and FID as Table 2 has it."""
  _released(c)
  if c.model.generator == 'vitunet':
    c.model.patch_size = 32
  _paper_fid(c)


def _paper_fid(c: config_dict.ConfigDict) -> None:
  """Measures FID as the paper's Table 2 has it."""
  c.fid.tap = 64
  c.fid.resize = 'tf1'
  c.fid.quantize = 'truncate'
  c.fid.num = 'min'


def _cpu_translation(c: config_dict.ConfigDict) -> None:
  """Learns on two CPU cores in 10 to 15 minutes: 64 px, patch 8."""
  c.data.image_size = 64
  c.data.load_size = 72
  c.batch_size = 4
  if c.model.generator == 'resnet':
    c.model.blocks = 3
    c.model.width = 32
  else:
    c.model.variant = 'Ti'
    c.model.depth = 6
    c.model.patch_size = 8
    c.model.resample = 'space'
  # Random weights need no download, and an early tap suits few images.
  c.fid.weights = 'random:0'
  c.fid.tap = 64
  c.log.samples = '10%'
  _in_ten_parts(c, '500 steps')


def _tiny_translation(c: config_dict.ConfigDict) -> None:
  """Takes narrow generators and a few steps at 32 px: for tests."""
  c.data.image_size = 32
  c.data.load_size = 36
  if c.model.generator == 'resnet':
    c.model.blocks = 1
    c.model.width = 4
  else:
    c.model.patch_size = 4
    c.model.depth = 6
    c.model.width = 48
    c.model.mlp_dim = 96
    c.model.num_heads = 2
  c.batch_size = 2
  c.fid.weights = 'random:0'
  c.fid.tap = 64
  c.log.samples = '2 steps'
  c.log.num_samples = 2
  _short(c)


WORDS = {
  'classification': {
    'paper': _paper,
    'strong': _strong,
    'cpu': _cpu,
    'tiny': _tiny,
  },
  'translation': {
    'cyclegan': _cyclegan,
    'released': _released,
    'resnet': _resnet,
    'paper': _paper_translation,
    'cpu': _cpu_translation,
    'tiny': _tiny_translation,
  },
  'fid': {'paper': _paper_fid},
}
