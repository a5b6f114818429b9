"""Training steps by a CPU's formulas and by the reference of accelerators.

Each step starts from the same state for both, as where a run is resumed on
another backend. Plain SGD, since Adam makes full steps of rounding noise.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, digits_vit22b_ti
from tests.helpers import quick
from vit22b_jax import errors
from vit22b_jax.data import catalog, splits
from vit22b_jax.models import generators, kernels
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification, cyclegan

SETS = ('auto', 'reference')
ULPS = 2.0**-22  # of weights below 1, from which updates are told
SGD = {'optim.name': 'sgd', 'optim.momentum': 0.0, 'optim.weight_decay': 0.0}


def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


def pixels(seed, count, size):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def classifier(**overrides):
  config = digits_vit22b_ti.get_config('tiny')
  fields = {'data.augment': 'none', 'model.patch_size': 2, 'batch_size': 8}
  fields |= {'model.init': 'torch', 'optim.learning_rate': 1.0, **SGD}
  config.update_from_flattened_dict(fields | overrides)
  part = splits.ArraySplit(pixels(0, 24, 8), np.arange(24) % 7)
  names = tuple('abcdefg')
  data = catalog.Dataset(part, part, part, names)
  return classification.Classification(config, one_device(), names, data)


def translator(words, size, **overrides):
  config = common.finish(common.translation(), words)
  fields = {'data.image_size': size, 'data.load_size': size}
  fields |= {'optim.learning_rate': 1.0, 'optim.schedule': 'constant', **SGD}
  config.update_from_flattened_dict(fields | overrides)
  pair = catalog.Pair(
    *(splits.ArraySplit(pixels(seed, 4, size)) for seed in range(2))
  )
  data = catalog.Dataset(pair, pair, None, ('a', 'b'))
  return cyclegan.CycleGAN(config, one_device(), ['a', 'b'], data)


def step(task, state, batch):
  """Returns the state, which is kept, after a step, and the step's scalars."""
  state = jax.tree.map(jnp.copy, state)
  with sharding.mesh_context(task.mesh):
    state, scalars = task.train_step(state, batch)
  return state, np.asarray(scalars)


def compare(make, tolerance, monkeypatch, prepare=lambda state: state):
  """Compares scalars and updates of two steps; returns the states."""
  tasks = {name: make() for name in SETS}
  task = tasks['auto']
  batches = task.train_batches()
  states = [prepare(task.init_state())]
  for _ in range(2):
    batch, found = next(batches), {}
    for name in SETS:
      monkeypatch.setenv(kernels.VARIABLE, name)
      found[name] = step(tasks[name], states[-1], batch)
    (actual, row), (expected, other) = found.values()
    for key, a, b in zip(task.scalars.all, row, other, strict=True):
      overflow = not np.isfinite(a) and not np.isfinite(b)
      assert overflow or abs(a - b) <= tolerance * max(abs(b), 1), (key, a, b)
    for field in ('params', 'batch_stats', 'ema'):
      if getattr(actual, field, None):
        moved, others = (
          jax.tree.map(jnp.subtract, getattr(s, field), getattr(old, field))
          for s, old in ((actual, states[-1]), (expected, states[-1]))
        )
        largest = max(jnp.abs(x).max() for x in jax.tree.leaves(others))
        for a, b in zip(*map(jax.tree.leaves, (moved, others)), strict=True):
          assert jnp.abs(a - b).max() <= tolerance * largest + ULPS, field
    states.append(actual)
  batches.close()
  return states


@pytest.mark.parametrize(
  ('overrides', 'tolerance'),
  [
    pytest.param(
      {
        'model.scan_layers': True,
        'model.remat': 'hidden',
        'model.pool': 'map',
        'optim.accumulate': 2,
        'optim.ema': 0.9,
      },
      1e-5,
      marks=pytest.mark.slow,
    ),
    (
      {
        'model.block': 'vit',
        'model.remat': 'full',
        'model.dropout': 0.1,
        'model.stochastic_depth': 0.3,
        'diagnostics.per_layer': True,
      },
      1e-5,
    ),
    pytest.param(
      {'model.block': 'released', 'model.dtype': 'bfloat16'},
      0.05,
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {
        'model.block': 'vit22b_mlp_norm',
        'model.pool': 'mean',
        'model.dtype': 'bfloat16',
        'model.stochastic_depth': 0.3,
        'diagnostics.per_layer': True,
      },
      0.05,
      marks=pytest.mark.slow,
    ),
  ],
  ids=['scan', 'vit', 'batch norm', 'bfloat16'],
)
def test_classifiers(overrides, tolerance, monkeypatch):
  compare(lambda: classifier(**overrides), tolerance, monkeypatch)


@pytest.mark.slow
def test_float16_skips_the_same_steps(monkeypatch):
  def overflowing(state):
    scale = state.loss_scale.replace(scale=jnp.float32(2.0**60))
    return state.replace(loss_scale=scale)

  def make():
    return classifier(**{'model.dtype': 'float16', 'model.block': 'released'})

  states = compare(make, 0.02, monkeypatch, overflowing)
  # Both steps are left out and halve the scale, by either set.
  scales = [float(s.loss_scale.scale) for s in states]
  assert scales == [2.0**60, 2.0**59, 2.0**58]
  jax.tree.map(
    np.testing.assert_array_equal, states[0].params, states[2].params
  )
  compare(make, 0.02, monkeypatch)


@pytest.mark.parametrize(
  ('words', 'size', 'overrides', 'tolerance'),
  [
    ('resnet,tiny', 24, {'discriminator.name': 'patchgan70'}, 1e-4),
    ('resnet,tiny', 16, {'model.dtype': 'float16'}, 0.05),
  ],
)
@pytest.mark.slow
def test_translators(words, size, overrides, tolerance, monkeypatch):
  overrides = {'discriminator.name': 'released', **overrides}
  compare(lambda: translator(words, size, **overrides), tolerance, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('fields', 'tolerance'),
  [
    ({'patch_size': 8}, 1e-4),
    ({'patch_size': 2, 'resample': 'space'}, 1e-4),
  ],
  ids=['channels', 'space'],
)
def test_vitunets(fields, tolerance, monkeypatch):
  """Images and gradients; a whole CycleGAN step takes minutes to compile."""
  sizes = {'width': 64, 'depth': 6, 'num_heads': 2, 'mlp_dim': 64}
  model = generators.build_vitunet(
    'released', 'Ti', image_size=16, **sizes, **fields
  )
  x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1)
  params = nn.unbox(quick.jit(model.init)(jax.random.key(0), x))

  def loss(params):
    y = model.apply(params, x, train=False)
    return jnp.sum(y * jnp.linspace(-1, 1, y.size).reshape(y.shape)), y

  def run(kind):
    monkeypatch.setenv(kernels.VARIABLE, kind)
    mesh = one_device()
    with sharding.mesh_context(mesh):
      grads, y = quick.jit(lambda p: jax.grad(loss, has_aux=True)(p))(params)
    return y, grads

  (y, grads), (other, others) = map(run, SETS)
  assert jnp.abs(y - other).max() <= tolerance * jnp.abs(other).max()
  largest = max(jnp.abs(g).max() for g in jax.tree.leaves(others))
  for a, b in zip(*map(jax.tree.leaves, (grads, others)), strict=True):
    assert jnp.abs(a - b).max() <= tolerance * largest


def test_the_gradient_penalty_takes_xla_s_attention():
  config = digits_vit22b_ti.get_config('tiny')
  config.loss.input_gradient_penalty = 0.1
  assert classification.build_model(config, 2).attention == 'xla'
  config.loss.input_gradient_penalty = 0.0
  assert classification.build_model(config, 2).attention == 'auto'
  config.loss.input_gradient_penalty = 0.1
  config.model.update(attention='cudnn', dtype='bfloat16', num_heads=2)
  with pytest.raises(errors.UserError, match='no second derivative'):
    classification.build_model(config, 2)
