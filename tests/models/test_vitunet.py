"""ViTUnets: golden parity, golden counts, gradients, rectangles, errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.helpers import golden_generators, golden_params, quick
from vit22b_jax import errors
from vit22b_jax.models import blocks, generators

# Five heads of a prime width are left in the middle of the narrowest stage.
TINY = {'depth': 6, 'num_heads': 5, 'mlp_dim': 40}
CHANNELS = {
  'resample': 'channels',
  'image_size': (21, 14),  # 3 x 2 patches
  'patch_size': 7,
  'width': 120,
}
SPACE = {
  'resample': 'space',
  'image_size': (16, 48),  # a grid of 8 x 24, and 1 x 3 in the middle
  'patch_size': 2,
  'width': 60,
}
BOTH = pytest.mark.parametrize(
  'shape', [CHANNELS, SPACE], ids=['channels', 'space']
)


def build(block='vit22b', shape=CHANNELS, **overrides):
  return generators.build_vitunet(block, 'Ti', **{**TINY, **shape, **overrides})


def make_images(model, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  shape = (batch, *model.image_size, 3)
  return rng.uniform(-1, 1, shape).astype(np.float32)


def abstract(model, images=None):
  images = make_images(model, 1) if images is None else images
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images))


def draw(model):
  """Random parameters, without compiling an initialization."""
  rng = np.random.default_rng(1)

  def one(path, s):
    a = rng.standard_normal(s.shape).astype(np.float32)
    if path[-1].key == 'scale':
      return 1 + 0.3 * a
    return 0.3 * a if a.ndim < 2 else a / np.sqrt(a[..., 0].size)

  return jax.tree.map_with_path(one, abstract(model))


def paths(tree):
  return traverse_util.flatten_dict(tree, sep='/')


# --- The released generators -------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'block', 'precision'),
  [
    pytest.param(
      'released_vitunet', 'released_vit', 'highest', marks=pytest.mark.slow
    ),
    pytest.param(
      'released_vitunet',
      'released_vit',
      'default',
      marks=[
        pytest.mark.slow,
        pytest.mark.skipif(
          jax.__version_info__ >= (0, 11),
          reason="a CPU's products at 'default' are coarser there (1.5e-3)",
        ),
      ],
    ),
    ('released_vit22bunet', 'released', 'highest'),
  ],
)
def test_generator_agrees_with_reference(name, block, precision):
  arrays, config = golden_params.load(name)
  model = generators.build_vitunet(
    block,
    'S',
    image_size=config['image_size'],
    precision=precision,
    **golden_params.sizes(config),
  )
  golden_generators.check(
    arrays,
    model,
    functools.partial(golden_generators.vitunet, config=config),
    golden_generators.recipe(name),
    golden_generators.vitunet_noise(config),
  )


# At 256 px, patch 32; those of released_vit and released in S and B are the
# released code's.
COUNTS = {
  'vit': (4_886_579, 13_105_571, 43_561_091),
  'vit22b': (4_877_763, 13_087_011, 43_523_043),
  'vit22b_mlp_norm': (4_880_547, 13_092_579, 43_534_179),
  'released_vit': (4_882_403, 13_097_219, 43_544_387),
  'released': (4_876_835, 13_086_083, 43_522_115),
  'released_unnormed': (4_876_835, 13_086_083, 43_522_115),
}


def test_every_block_is_counted():
  assert COUNTS.keys() == SPACE_COUNTS.keys() == blocks.PRESETS.keys()


@pytest.mark.parametrize('block', COUNTS)
def test_parameter_counts(block):
  for variant, count in zip(('Ti', 'S', 'B'), COUNTS[block], strict=True):
    model = generators.build_vitunet(
      block, variant, image_size=256, patch_size=32
    )
    leaves = jax.tree.leaves(abstract(model))
    assert sum(a.size for a in leaves) == count, variant


# --- Both generators ---------------------------------------------------------

# At 64 px, patch 8.
SPACE_COUNTS = {
  'vit': (7_909_011, 31_556_643, 126_067_779),
  'vit22b': (7_891_027, 31_518_883, 125_990_467),
  'vit22b_mlp_norm': (7_896_403, 31_529_635, 126_011_971),
  'released_vit': (7_900_947, 31_540_515, 126_035_523),
  'released': (7_888_275, 31_515_171, 125_984_835),
  'released_unnormed': (7_888_275, 31_515_171, 125_984_835),
}


@pytest.mark.parametrize('block', SPACE_COUNTS)
def test_parameter_counts_of_the_spatial_generator(block):
  for variant, count in zip(('Ti', 'S', 'B'), SPACE_COUNTS[block], strict=True):
    model = generators.build_vitunet(
      block, variant, image_size=64, patch_size=8, resample='space'
    )
    leaves = jax.tree.leaves(abstract(model))
    assert sum(a.size for a in leaves) == count, variant


@functools.cache
def forward(model):
  """The compiled generator."""
  return quick.jit(model.apply)


@functools.cache
def gradients(model):
  """Compiled: parameters -> the largest gradient of each, by its path."""
  images = make_images(model)

  def loss_fn(params):
    y = model.apply(params, images)
    return jnp.sum(y * jnp.linspace(-1, 1, y.size).reshape(y.shape))

  def largest(params):
    return jax.tree.map(lambda g: jnp.abs(g).max(), jax.grad(loss_fn)(params))

  compiled = quick.jit(largest)
  return lambda params: paths(compiled(params)['params'])


@BOTH
def test_gradients_reach_every_parameter(shape):
  """But biases before an instance norm, which takes them out again."""
  model = build(shape=shape)
  sizes = gradients(model)(draw(model))
  noise = set()
  if shape is CHANNELS:
    convs = [f'conv_{i}' for i in range(3)]
    convs += [f'residual_{i:02d}/conv_{j}' for i in (0, 1) for j in (0, 1)]
    noise = {f'cnn/{name}/bias' for name in convs}
  assert sizes.keys() >= noise
  largest = max(sizes.values())
  for path, size in sizes.items():
    if path in noise:
      assert size < 1e-6 * largest, path
    else:
      assert size > 1e-5 * largest, path


@pytest.mark.parametrize('index', range(3))
def test_the_spatial_generator_consumes_every_skip(index):
  """Where the way down is cut, a skip is an encoder's only way out."""
  model = build(shape=SPACE)
  params = draw(model)
  merge = params['params'][f'merge_{index}']
  params['params'][f'merge_{index}'] = jax.tree.map(np.zeros_like, merge)
  sizes = gradients(model)(params)
  for path, size in sizes.items():
    if path.startswith(f'encoder_{index}'):
      assert size > 1e-3, path


@BOTH
def test_images_of_a_batch_are_apart(shape):
  model = build(shape=shape)
  params, images = draw(model), make_images(model)
  together = forward(model)(params, images)
  assert together.shape == images.shape
  assert np.abs(together).max() <= 1
  others = images.copy()
  others[0] = make_images(model, seed=5)[0]
  apart = forward(model)(params, others)
  assert np.abs(apart[0] - together[0]).max() > 0.01
  np.testing.assert_allclose(apart[1], together[1], rtol=1e-4, atol=1e-5)


@BOTH
def test_half_precision_keeps_float32_at_both_ends(shape):
  model = build(shape=shape)
  params, images = draw(model), make_images(model)
  half_model = model.clone(dtype='bfloat16')
  leaves = jax.tree.leaves(abstract(half_model))
  assert {a.dtype for a in leaves} == {jnp.dtype('float32')}
  exact = forward(model)(params, images)
  half = forward(half_model)(params, images)
  assert half.dtype == exact.dtype == jnp.float32
  assert 0 < np.abs(half - exact).mean() < 0.1 * np.abs(exact).mean()


@BOTH
def test_dropout_is_for_training(shape):
  """And then in each of the seven stages and on the embedded patches."""
  model = build(shape=shape, dropout=0.5)
  params, images = draw(model), make_images(model)

  active = []

  def note(call, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.Dropout) and module.rate:
      active.append(not module.deterministic)
    return call(*args, **kwargs)

  for train in (False, True):
    active.clear()
    run = functools.partial(
      model.apply, train=train, rngs={'dropout': jax.random.key(0)}
    )
    with nn.intercept_methods(note):
      jax.eval_shape(run, params, images)
    # In a block: hidden units of the MLP, and the one branch.
    assert active == [train] * (1 + 7 * 2)


def test_the_spatial_generator_begins_near_its_input():
  model = build(shape=SPACE)
  images = make_images(model)
  params = nn.unbox(quick.jit(model.init)(jax.random.key(0), images))
  change = forward(model)(params, images) - 0.9 * images
  assert 0.01 < np.abs(change).mean() < 0.3
  kernels = paths(params['params'])
  for name in ('merge_0', 'join_0', 'to_pixels'):
    assert np.std(kernels[f'{name}/kernel']) == pytest.approx(0.02, rel=0.1)


def test_the_spatial_generator_translates_other_sizes():
  model = build(shape=SPACE)
  images = jax.ShapeDtypeStruct((1, 32, 16, 3), 'float32')
  output = jax.eval_shape(model.apply, abstract(model), images)
  assert output.shape == images.shape


@pytest.mark.parametrize(
  ('model', 'size', 'expected', 'larger'),
  [
    (build(), (99, 99), (21, 14), (21, 14)),
    (build(shape=SPACE), (50, 15), (48, 16), (64, 16)),
    (build(shape=SPACE), (48, 32), (48, 32), (48, 32)),
    (
      generators.build({'generator': 'resnet'}, 64),
      (103, 5),
      (100, 8),
      (104, 8),
    ),
  ],
)
def test_sizes_that_a_generator_takes(model, size, expected, larger):
  assert generators.fitting_size(model, *size) == expected
  assert generators.fitting_size(model, *size, larger=True) == larger


def test_section_of_a_config():
  section = {'generator': 'vitunet', 'blocks': None, 'block': 'vit'}
  section |= {'variant': 'S', 'patch_size': 8, 'resample': 'space'}
  section |= {'depth': None, 'eps': 1e-3, 'dtype': 'bfloat16', 'dropout': 0.1}
  model = generators.build(section, (64, 128))
  assert (model.width, model.depth, model.norm_bias) == (384, 12, True)
  assert (model.eps, model.dtype, model.dropout) == (1e-3, 'bfloat16', 0.1)
  assert model.image_size == (64, 128)


@pytest.mark.parametrize(
  ('shape', 'changes', 'message'),
  [
    (CHANNELS, {'image_size': 50}, 'image_size=50 is not a multiple of 7'),
    (CHANNELS, {'image_size': (21, 15)}, 'size=15 is not a multiple of 7'),
    (CHANNELS, {'image_size': 0}, 'image_size=0 is not a multiple'),
    (CHANNELS, {'depth': 8}, 'depth=8 is not a multiple of 6'),
    (CHANNELS, {'variant': 'H', 'depth': None}, 'depth=32 is not a multiple'),
    (CHANNELS, {'width': 60}, '5 heads share width/8'),
    (CHANNELS, {'mlp_dim': 60}, '5 heads share mlp_dim/8'),
    (CHANNELS, {'block': 'vit', 'mlp_dim': 60}, 'stage has mlp_dim/8'),
    (SPACE, {'image_size': 40}, 'image_size=40 is not a multiple of 16'),
    (SPACE, {'patch_size': 6, 'image_size': 48}, 'size=6 is not a power'),
    (SPACE, {'patch_size': 1}, 'patch_size=1 is not a power'),
    (SPACE, {'width': 50}, 'width=50 is not a multiple of 4'),
    (SPACE, {'width': 51}, 'width=51 is not a multiple of model.num_heads'),
    (SPACE, {'resample': 'spatial'}, 'is not one of channels, space'),
    (SPACE, {'pool': 'mean'}, "model key='pool' is not one of"),
    (SPACE, {'final_norm': True}, "key='final_norm' is not one of"),
    (SPACE, {'block': 'vit22', 'depth': None}, "Did you mean 'vit22b'"),
    (SPACE, {'variant': 's'}, 'model.variant='),
  ],
)
def test_mistakes_are_named(shape, changes, message):
  fields = {'block': 'vit22b', 'variant': 'Ti', **TINY, **shape, **changes}
  with pytest.raises(errors.UserError, match=message):
    generators.build_vitunet(**fields)


@BOTH
def test_images_of_a_wrong_size_are_refused(shape):
  model = build(shape=shape)
  images = np.zeros((1, 40, 14, 3), np.float32)
  with pytest.raises(errors.UserError, match='not 40 x 14'):
    jax.eval_shape(model.init, jax.random.key(0), images)
