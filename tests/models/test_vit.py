"""Classifiers: golden parity, golden counts, pools, heads, inits, errors."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from tests.helpers import golden_params
from vit22b_jax import errors
from vit22b_jax.models import axes, blocks, embeddings, heads, vit

TINY = {'depth': 2, 'width': 20, 'num_heads': 5, 'mlp_dim': 15}
IMAGES = (3, 21, 14, 3)  # 3 x 2 patches of 7 pixels


def build(block='vit22b', **overrides):
  fields = {'num_classes': 11, 'patch_size': 7, **TINY, **overrides}
  return vit.build(block, 'Ti', **fields)


@pytest.fixture(scope='module')
def images():
  return jax.random.normal(jax.random.key(7), IMAGES)


def init(model, images):
  return nn.unbox(jax.jit(model.init)(jax.random.key(0), images))


def draw(model, images):
  """Random variables, without compiling an initialization."""
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: (
      rng.uniform(0.05, 0.4, s.shape).astype(np.float32)
      * rng.choice([-1, 1], s.shape).astype(np.float32)
      if len(s.shape) > 1
      else rng.uniform(0.1, 1, s.shape).astype(np.float32)
    ),
    shapes,
  )


def relative(actual, expected):
  """max|a - b| / max|b|."""
  return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


def paths(tree):
  return traverse_util.flatten_dict(tree, sep='/')


# --- The released classifiers ----------------------------------------------

# A bias before a batch norm has no gradient but rounding noise, which Adam
# turns into full steps; it moves the mean that the batch norm keeps.
NOISE = {
  'released_vit': (),
  'released_vit22b': (
    'params/head/hidden/bias',
    'batch_stats/head/batch_norm/mean',
  ),
}


convert = golden_params.released_variables


@pytest.fixture(scope='module', params=golden_params.RELEASED)
def released(request):
  """Name, arrays, model and variables of a released classifier."""
  name = request.param
  arrays, _ = golden_params.load(name)
  model = golden_params.released_model(name)
  return name, arrays, model, convert(name, 'param')


@pytest.fixture(scope='module')
def steps(released):
  """Variables, logits, losses and gradients of three AdamW steps."""
  _, arrays, model, variables = released
  x, labels = golden_params.images(arrays), arrays['label']
  tx = optax.adamw(1e-2, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)

  @jax.jit
  def step(params, stats):
    def loss_fn(params):
      logits, updated = model.apply(
        {'params': params, 'batch_stats': stats},
        x,
        train=True,
        mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), (logits, updated.get('batch_stats', {}))

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params
    )
    return stats, (loss, logits, grads)

  @jax.jit
  def update(grads, opt_state, params):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params, stats = variables['params'], variables['batch_stats']
  opt_state = tx.init(params)
  history = []
  for _ in range(3):
    stats, seen = step(params, stats)
    history.append(seen)
    # In float32 Adam's 1 - 0.999**step is off by 1e-5, as much as is allowed.
    with jax.enable_x64(True):
      params, opt_state = update(seen[2], opt_state, params)
  return {'params': params, 'batch_stats': stats}, history


def test_released_tree_is_complete(released):
  _, arrays, model, variables = released
  x = golden_params.images(arrays)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), x))
  expected = {'batch_stats': {}, **jax.tree.map(lambda s: s.shape, shapes)}
  assert jax.tree.map(np.shape, variables) == expected


def test_released_logits(released, steps):
  name, arrays, model, variables = released
  apply = jax.jit(model.apply)
  x = golden_params.images(arrays)
  assert relative(apply(variables, x), arrays['logits_eval']) <= 1e-5
  assert relative(steps[1][0][1], arrays['logits_train']) <= 1e-5
  # What noise moved is taken from the reference; the logits must still agree.
  after = paths(steps[0])
  reference = paths(convert(name, 'after3'))
  after.update({path: reference[path] for path in NOISE[name]})
  after = traverse_util.unflatten_dict(after, sep='/')
  assert relative(apply(after, x), arrays['logits_eval_after3']) <= 1e-5


def test_released_first_gradients(released, steps):
  name = released[0]
  expected = paths({'params': convert(name, 'grad')['params']})
  actual = paths({'params': steps[1][0][2]})
  assert actual.keys() == expected.keys()
  largest = max(np.abs(g).max() for g in expected.values())
  for path, grad in expected.items():
    if path in NOISE[name]:
      assert np.abs(actual[path] - grad).max() <= 1e-3 * largest
    else:
      assert relative(actual[path], grad) <= 1e-4, path


def test_released_losses_and_extremes_over_three_steps(released, steps):
  _, arrays, _, _ = released
  losses, logits, grads = zip(*steps[1], strict=True)
  np.testing.assert_allclose(losses, arrays['losses'], rtol=1e-5)
  largest = [x.max() for x in logits]
  np.testing.assert_allclose(largest, arrays['max_logit'], rtol=1e-5)
  largest = [max(np.abs(g).max() for g in jax.tree.leaves(x)) for x in grads]
  np.testing.assert_allclose(largest, arrays['max_abs_grad'], rtol=1e-4)


def test_released_weights_after_three_steps(released, steps):
  name = released[0]
  actual = paths(steps[0])
  expected = paths(convert(name, 'after3'))
  assert actual.keys() == expected.keys()
  for path in expected.keys() - set(NOISE[name]):
    np.testing.assert_allclose(
      actual[path], expected[path], rtol=0, atol=1e-5, err_msg=path
    )


# --- Variants and counts ---------------------------------------------------

# Parameters at 32 px, patch 16, 10 classes, with the released MLP head: with
# batch norm on the parallel blocks that have norms, without on the others.
SMALL = {
  'vit': (5643466, 22198666, 88044298, 307344394, 637282570, 21903144970),
  'vit22b': (5630218, 22170634, 87986698, 307182602, 637009930, 21901135882),
  'vit22b_mlp_norm': (
    *(5634826, 22179850, 88005130),
    *(307231754, 637091850, 21901725706),
  ),
  'released_vit': (
    *(5636170, 22184074, 88015114),
    *(307268618, 637157130, 21902247946),
  ),
  'released': (5628490, 22168714, 87984394, 307178506, 637003530, 21901117450),
  'released_unnormed': (
    *(5626954, 22165642, 87978250),
    *(307170314, 636993290, 21901068298),
  ),
}
# Parameters at 224 px, patch 16, 1,000 classes, with the linear head.
LARGE = {
  'vit': (5717416, 22050664, 86567656, 304326632, 632199400, 21759204328),
  'vit22b': (5702632, 22019560, 86503912, 304156648, 631916520, 21757146088),
  'vit22b_mlp_norm': (
    *(5707240, 22028776, 86522344),
    *(304205800, 631998440, 21757735912),
  ),
  'released_vit': (
    *(5710120, 22036072, 86538472),
    *(304250856, 632073960, 21758307304),
  ),
  'released': (5700904, 22017640, 86501608, 304152552, 631910120, 21757127656),
  'released_unnormed': (
    *(5700904, 22017640, 86501608),
    *(304152552, 631910120, 21757127656),
  ),
}
NAMES = ('Ti', 'S', 'B', 'L', 'H', '22B')


def shapes_of(model, size):
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  return nn.unbox(variables)['params']


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_model(block, variant, size, **fields):
  """Parameters, tracing one block, since all have the same."""
  model = vit.build(block, variant, patch_size=16, depth=1, **fields)
  params = shapes_of(model, size)
  depth = vit.VARIANTS[variant]['depth']
  return count(params) + (depth - 1) * count(params['block_00'])


@pytest.mark.parametrize('block', SMALL)
def test_parameter_counts(block):
  batch_norm = block in ('vit22b', 'vit22b_mlp_norm', 'released')
  head = 'mlp_bn' if batch_norm else 'mlp'
  for i, variant in enumerate(NAMES):
    small = count_model(block, variant, 32, num_classes=10, head=head)
    large = count_model(block, variant, 224, num_classes=1000, head='linear')
    assert small == SMALL[block][i], variant
    assert large == LARGE[block][i], variant
  whole = vit.build(block, 'Ti', patch_size=16, num_classes=10, head=head)
  assert count(shapes_of(whole, 32)) == SMALL[block][0]


def test_no_variant_or_preset_is_missing():
  assert tuple(vit.VARIANTS) == NAMES
  assert vit.PRESETS.keys() == SMALL.keys() == LARGE.keys()
  released = {name: build(name, head=None).head for name in vit.PRESETS}
  assert released == {
    'vit': 'linear',
    'vit22b': 'linear',
    'vit22b_mlp_norm': 'linear',
    'released_vit': 'mlp',
    'released': 'mlp_bn',
    'released_unnormed': 'mlp',
  }


def test_matrices_of_the_published_22b():
  model = vit.build('vit22b', '22B', num_classes=1, patch_size=14)
  params = shapes_of(model, 224)
  kernels = {
    path: leaf
    for path, leaf in paths(params).items()
    if path.startswith('block_') and path.endswith('/kernel')
  }
  assert count(kernels) == 21_743_271_936
  assert kernels['block_47/in_proj/kernel'].shape == (6144, 48, 896)
  assert kernels['block_47/out_proj/kernel'].shape == (48, 640, 6144)


# --- The parameter tree ----------------------------------------------------


@pytest.mark.parametrize('block', vit.PRESETS)
def test_parameters_have_known_names_and_logical_axes(block, images):
  model = build(block, pool='map' if block == 'vit' else 'cls')
  boxed = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  leaves = jax.tree.leaves(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  known = {name for key, name in vars(axes).items() if key.isupper()}
  for leaf in leaves:
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= known
  names = {path.split('/')[-1] for path in paths(nn.unbox(boxed))}
  known = {'kernel', 'bias', 'scale', 'pos_embedding', 'cls', 'probe'}
  assert names <= known
  assert {'block_00', 'block_01'} <= boxed.keys()


@pytest.mark.parametrize(
  ('block', 'overrides'),
  [
    ('vit', {'pool': 'map'}),
    ('vit22b', {'pool': 'mean', 'pos_embedding': 'sincos'}),
    ('vit22b_mlp_norm', {}),
    ('released_vit', {}),
    ('released', {}),
    ('released_unnormed', {'pool': 'mean'}),
  ],
)
def test_gradients_reach_every_parameter(block, overrides, images):
  model = build(block, init='torch', depth=1, **overrides)
  variables = draw(model, images)

  @jax.jit
  def gradients(params):
    def loss(params):
      logits = model.apply({**variables, 'params': params}, images)
      return jnp.sin(logits).sum()

    return jax.grad(loss)(params)

  for path, grad in paths(gradients(variables['params'])).items():
    assert np.isfinite(grad).all(), path
    assert np.abs(grad).max() > 1e-7, path


# --- Initialization --------------------------------------------------------


@pytest.mark.parametrize('block', ['vit', 'vit22b', 'vit22b_mlp_norm'])
def test_vit_init(block):
  fields = {'width': 96, 'num_heads': 2, 'mlp_dim': 384, 'depth': 1}
  model = build(block, **fields, head='mlp', init='vit')
  params = paths(init(model, jnp.zeros((1, 28, 28, 3)))['params'])
  fan_in = {'patch_embedding': 147, 'mlp_out': 384}
  for path, array in params.items():
    *_, module, leaf = ('', *path.split('/'))
    if path == 'head/logits/kernel' or leaf in ('bias', 'cls'):
      assert not array.any(), path
    elif leaf == 'scale':
      assert (array == 1).all(), path
    elif leaf == 'pos_embedding':
      assert np.std(array) == pytest.approx(0.02, rel=0.1)
    elif module == 'out_proj':  # Each slice as the projection it stands for.
      assert np.std(array[:, :48]) == pytest.approx(96**-0.5, rel=0.05)
      assert np.std(array[:, 48:]) == pytest.approx(384**-0.5, rel=0.05)
    else:
      expected = fan_in.get(module, 96) ** -0.5
      assert np.std(array) == pytest.approx(expected, rel=0.05), path


@pytest.mark.parametrize('block', ['vit', 'vit22b', 'released'])
def test_torch_init(block):
  fields = {'width': 96, 'num_heads': 2, 'mlp_dim': 384, 'depth': 1}
  model = build(block, **fields, head='mlp_bn', init='torch')
  params = paths(init(model, jnp.zeros((1, 28, 28, 3)))['params'])
  fan_in = {'patch_embedding': 147, 'mlp_out': 384, 'logits': 384}
  for path, array in params.items():
    *_, module, leaf = ('', *path.split('/'))
    if 'norm' in module:
      assert (array == (leaf == 'scale')).all(), path
    elif leaf in ('pos_embedding', 'cls'):
      assert np.std(array) == pytest.approx(1, rel=0.2), path
    elif module == 'out_proj' and leaf == 'kernel':
      assert np.abs(array[:, :48]).max() == pytest.approx(96**-0.5, rel=0.01)
      assert np.abs(array[:, 48:]).max() == pytest.approx(384**-0.5, rel=0.01)
    elif module == 'out_proj':  # A sum of two uniform biases.
      variance = (1 / 96 + 1 / 384) / 3
      assert np.std(array) == pytest.approx(variance**0.5, rel=0.2)
    else:
      bound = fan_in.get(module, 96) ** -0.5
      assert np.abs(array).max() <= bound, path
      assert np.abs(array).max() > 0.5 * bound, path
      assert array.size < 999 or np.abs(array).max() > 0.99 * bound, path


# --- Embeddings ------------------------------------------------------------


def test_sincos_positions():
  height, width, dim = 3, 5, 8
  table = embeddings.sincos_2d(height, width, dim)
  assert table.shape == (15, 8)
  row, column = 2, 3
  expected = [
    *(math.sin(column), math.sin(column * 1e-4)),
    *(math.cos(column), math.cos(column * 1e-4)),
    *(math.sin(row), math.sin(row * 1e-4)),
    *(math.cos(row), math.cos(row * 1e-4)),
  ]
  np.testing.assert_allclose(
    table[row * width + column], expected, rtol=1e-6, atol=1e-7
  )


def test_resampled_positions():
  rows, columns = np.mgrid[:5, :7].astype(np.float32)
  plane = np.stack([rows + 0.5, columns + 0.5], axis=-1).reshape(-1, 2)
  token = np.full((1, 2), 9, np.float32)
  positions = np.concatenate([token, plane])
  same = embeddings.resample_positions(positions, (5, 7), (5, 7))
  np.testing.assert_allclose(same, positions, atol=1e-5)
  larger = embeddings.resample_positions(positions, (5, 7), (10, 14))
  np.testing.assert_array_equal(larger[:1], token)
  grid = np.asarray(larger[1:]).reshape(10, 14, 2)
  middle = grid[4:6, 4:10]  # Away from the edge a plane stays the plane.
  np.testing.assert_allclose(middle[..., 0], [[2.25] * 6, [2.75] * 6])
  np.testing.assert_allclose(middle[0, :, 1], np.arange(6) * 0.5 + 2.25)
  smaller = embeddings.resample_positions(plane, (5, 7), (3, 3))
  assert smaller.shape == (9, 2)
  np.testing.assert_allclose(smaller.mean(0), plane.mean(0), rtol=1e-3)


@pytest.mark.parametrize('pool', ['cls', 'mean', 'map'])
def test_only_positions_tell_patches_apart(pool, images):
  """Without them a permutation of the patches changes nothing."""
  model = build('vit22b', pool=pool, depth=1)
  variables = draw(model, images)
  apply = jax.jit(model.apply)
  flipped = images.reshape(3, 3, 7, 14, 3)[:, ::-1].reshape(IMAGES)
  assert relative(apply(variables, flipped), apply(variables, images)) > 1e-3
  table = variables['params']['positions']['pos_embedding']
  variables['params']['positions'] = {'pos_embedding': jnp.zeros_like(table)}
  assert relative(apply(variables, flipped), apply(variables, images)) < 1e-5


# --- What a model does -----------------------------------------------------


def test_captured_values(images):
  model = build('vit', pool='mean', depth=1)
  variables = draw(model, images)
  logits, out = jax.jit(functools.partial(model.apply, capture=True))(
    variables, images
  )
  plain = jax.jit(model.apply)(variables, images)
  np.testing.assert_allclose(logits, plain, rtol=1e-6)
  assert {name: a.shape for name, a in out.items()} == {
    'attn_logit_max': (1,),
    'attn_entropy': (1,),
    'residual_rms': (1,),
    'attn_map': (1, 3, 5, 6, 6),
  }
  attention = np.asarray(out['attn_map'], np.float64)
  np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
  entropy = -(attention * np.log(attention)).sum(-1).mean((1, 2, 3))
  np.testing.assert_allclose(out['attn_entropy'], entropy, rtol=1e-5)

  # By hand, up to the attention logits.
  params = variables['params']
  x = np.asarray(images).reshape(3, 3, 7, 2, 7, 3).transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(3, 6, -1) @ params['patch_embedding']['kernel']
  x += params['patch_embedding']['bias']
  x += params['positions']['pos_embedding']
  block = params['block_00']
  y = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  y = y * block['attn_in_norm']['scale'] + block['attn_in_norm']['bias']
  y = np.einsum('bld,dne->bnle', y, block['qkv']['kernel'])
  y += block['qkv']['bias'][:, None]
  q, k, _ = np.split(y, 3, -1)
  largest = (q @ k.swapaxes(2, 3)).max() / np.sqrt(4)
  np.testing.assert_allclose(out['attn_logit_max'][0], largest, rtol=1e-4)

  block = blocks.SequentialBlock(**model.shared_fields())
  y, _ = block.apply({'params': params['block_00']}, x)
  rms = np.sqrt(np.square(y).mean())
  np.testing.assert_allclose(out['residual_rms'][0], rms, rtol=1e-5)


def test_captured_values_are_stacked_by_depth(images):
  model = build('vit22b', depth=3)
  _, out = jax.eval_shape(
    functools.partial(model.init_with_output, capture=True),
    jax.random.key(0),
    images,
  )[0]
  assert out['attn_map'].shape == (3, 3, 5, 7, 7)
  assert out['residual_rms'].shape == (3,)


def test_capture_costs_nothing_when_unused(images):
  model = build('vit22b', depth=1)
  variables = draw(model, images)

  def flops(function):
    compiled = jax.jit(function).lower(variables, images).compile()
    return compiled.cost_analysis()['flops']

  plain = flops(model.apply)
  ignored = flops(lambda v, x: model.apply(v, x, capture=True)[0])
  used = flops(functools.partial(model.apply, capture=True))
  assert ignored == plain < used


def test_dropout_draws_only_in_training(images):
  model = build('vit', dropout=0.3, stochastic_depth=0.3)
  variables = draw(model, images)
  train = jax.jit(functools.partial(model.apply, train=True))
  one, two, again = (
    train(variables, images, rngs={'dropout': jax.random.key(i)})
    for i in (0, 1, 0)
  )
  assert not np.array_equal(one, two)
  np.testing.assert_array_equal(one, again)
  actual, expected = (
    jax.jit(made.apply)(variables, images) for made in (model, build('vit'))
  )
  assert relative(actual, expected) < 1e-6


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_logits_are_float32(dtype, images):
  half, full = build('vit22b', dtype=dtype), build('vit22b')
  variables = draw(full, images)
  logits = jax.jit(half.apply)(variables, images)
  assert logits.dtype == jnp.float32
  exact = jax.jit(full.apply)(variables, images)
  assert 0 < relative(logits, exact) < 0.05


def test_batch_norm_statistics_are_over_the_global_batch():
  devices = jax.devices()[:8]
  mesh = jax.sharding.Mesh(np.array(devices), ('data',))
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  x = jax.random.normal(jax.random.key(0), (8 * 3, 5)) * 3 + 1
  module = heads.BatchNorm()
  variables = nn.unbox(module.init(jax.random.key(1), x, False))
  step = jax.jit(
    functools.partial(module.apply, train=True, mutable=['batch_stats'])
  )
  y, updated = step(variables, jax.device_put(x, spec))
  np.testing.assert_allclose(y.mean(0), np.zeros(5), atol=1e-5)
  np.testing.assert_allclose(y.std(0), np.ones(5), atol=1e-5)
  stats = updated['batch_stats']
  x = np.asarray(x)
  np.testing.assert_allclose(stats['mean'], 0.1 * x.mean(0), rtol=1e-5)
  variance = 0.9 + 0.1 * x.var(0, ddof=1)
  np.testing.assert_allclose(stats['var'], variance, rtol=1e-5)


# --- Mistakes --------------------------------------------------------------


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'block': 'vit22'}, r"'vit22' is not one of .*Did you mean 'vit22b'\?"),
    ({'variant': 'Tiny'}, r"'Tiny' is not one of Ti, S, .*mean 'Ti'\?"),
    ({'qk_nrom': True}, r"'qk_nrom' is not one of .*mean 'qk_norm'\?"),
    ({'form': 'parallel'}, r"'form' is not one of"),
    ({'norm': 'layers'}, r"model\.norm='layers'.*mean 'layer'\?"),
    ({'pool': 'max'}, r"model\.pool='max' is not one of cls, mean, map"),
    ({'dtype': 'float64'}, r"model\.dtype='float64'"),
    ({'width': 100, 'num_heads': 3}, r'width=100 is not a multiple of .*=3'),
    ({'mlp_dim': 100}, r'mlp_dim=100 is not a multiple of .*num_heads=3'),
    ({'depth': 0}, r'model\.depth=0 must be .* at least 1 '),
    ({'dropout': 1.0}, r'model\.dropout=1\.0 must be .* at least 0 and be'),
    ({'block': 'vit', 'sum_norm': True}, r'sum_norm=True .*sequential'),
    ({'norm': 'rms', 'norm_bias': True}, r'set model\.norm_bias=False'),
    ({'attention': 'cudnn'}, r"float32 with 64: set model\.dtype='bfloat16'"),
    (
      {'attention': 'cudnn', 'dtype': 'bfloat16', 'num_heads': 16},
      r'multiple of 8 up to 128, not bfloat16 with 12',
    ),
    (
      {'pos_embedding': 'sincos', 'width': 30, 'mlp_dim': 120},
      "width=30 is not a multiple of 4 from 8, .*pos_embedding='sincos'",
    ),
  ],
)
def test_mistakes_are_named(overrides, message):
  fields = {'variant': 'Ti', 'num_classes': 2, 'patch_size': 4, **overrides}
  with pytest.raises(errors.UserError, match=message):
    vit.build(**fields)


def test_image_must_be_whole_patches():
  model = build()
  with pytest.raises(errors.UserError, match=r'21 x 15 pixels .*7 x 7'):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 21, 15, 3)))


def test_none_stands_for_the_default():
  overrides = dict.fromkeys(
    ('norm', 'head', 'pool', 'remat', 'width', 'eps', 'dropout')
  )
  given = vit.build('released', 'S', num_classes=10, patch_size=4, **overrides)
  assert given == vit.build('released', 'S', num_classes=10, patch_size=4)
