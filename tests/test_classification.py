"""The training step: what must not change its result, and what must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_vit22b_ti
from vit22b_jax import errors, sharding
from vit22b_jax.data import facts, sources, splits
from vit22b_jax.tasks import classification


def _mesh(data=1, fsdp=1, tensor=1):
  count = data * fsdp * tensor
  devices = np.array(jax.devices()[:count]).reshape(data, fsdp, tensor)
  return jax.sharding.Mesh(devices, ('data', 'fsdp', 'tensor'))


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)

  def split(count):
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return splits.ArraySplit(images, np.arange(count) % 7)

  names = tuple('abcdefg')
  return sources.Dataset(split(48), split(23), split(13), names)


def _task(data, mesh=None, **overrides):
  config = digits_vit22b_ti.get_config('tiny')
  config.data.augment = 'none'
  config.model.patch_size = 2
  config.model.dropout = 0.0
  config.optim.ema = 0.0
  config.update_from_flattened_dict(overrides)
  mesh = mesh or _mesh()
  return classification.Classification(config, mesh, data.class_names, data)


def _steps(task, count):
  state, batches = task.init(), task.train_iterator()
  rows = []
  for _ in range(count):
    state, scalars = task.train_step(state, next(batches))
    row = np.asarray(scalars).tolist()
    rows.append(dict(zip(task.scalar_names, row, strict=True)))
  batches.close()
  return state, rows


def _close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_accumulated_equals_whole_batches(data):
  whole, rows = _steps(_task(data), 3)
  parts, other = _steps(_task(data, **{'optim.accumulate': 4}), 3)
  for name in ('loss', 'grad_norm', 'max_logit', 'train/top1'):
    np.testing.assert_allclose(
      [row[name] for row in rows], [row[name] for row in other], rtol=2e-5
    )
  _close(whole.params, parts.params, atol=2e-5)


def test_batch_norm_refuses_to_see_parts_of_a_batch(data):
  overrides = {'optim.accumulate': 2, 'model.block': 'released'}
  with pytest.raises(errors.UserError, match='whole'):
    _task(data, **overrides)


def test_average_of_weights_is_the_recurrence(data):
  task = _task(data, **{'optim.ema': 0.75, 'optim.learning_rate': 0.1})
  state, batches = task.init(), task.train_iterator()
  expected = jax.tree.map(np.array, state.params)
  for _ in range(3):
    state, _ = task.train_step(state, next(batches))
    expected = jax.tree.map(
      lambda e, p: 0.75 * e + 0.25 * np.asarray(p), expected, state.params
    )
  batches.close()
  _close(state.ema, expected, rtol=1e-6, atol=1e-7)
  variables, kind = task.variables(vars(state))
  assert kind == 'ema'
  _close(variables['params'], state.ema, rtol=0)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_keeps_float32_weights_and_learns_alike(data, dtype):
  _, rows = _steps(_task(data), 3)
  state, other = _steps(_task(data, **{'model.dtype': dtype}), 3)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
  np.testing.assert_allclose(
    [row['loss'] for row in rows], [row['loss'] for row in other], rtol=5e-3
  )
  assert (state.loss_scale is not None) == (dtype == 'float16')


def test_float16_overflow_halves_the_scale_and_skips_the_step(data):
  # The head of `vit`'s initialisation is zero, and so are gradients behind it.
  task = _task(data, **{'model.dtype': 'float16', 'model.init': 'torch'})
  state, batches = task.init(), task.train_iterator()
  before = jax.tree.map(np.array, state.params)
  scale = state.loss_scale.replace(scale=jnp.float32(2.0**60))
  state, scalars = task.train_step(
    state.replace(loss_scale=scale), next(batches)
  )
  batches.close()
  row = dict(zip(task.scalar_names, np.asarray(scalars), strict=True))
  assert row['verdict/keep'] and not row['verdict/stopped']
  assert state.step == 1 and state.loss_scale.scale == 2.0**59
  _close(state.params, before, rtol=0)


@pytest.mark.parametrize(
  'block', ['vit', pytest.param('released', marks=pytest.mark.slow)]
)
def test_other_blocks_on_a_mesh_equal_one_device(data, block):
  """Batch norm's statistics are those of the global batch."""
  overrides = {
    'model.block': block,
    'model.norm': 'layer',
    'data.augment': 'standard',
    'model.dropout': 0.1,
  }
  one, many = _task(data, **overrides), _task(data, _mesh(2, 2, 2), **overrides)
  rows, other = _steps(one, 5)[1], _steps(many, 5)[1]
  np.testing.assert_allclose(
    [row['loss'] for row in rows], [row['loss'] for row in other], rtol=1e-5
  )
  # After one step: later, rounding noise in a bias that the norm cancels, which
  # Adam turns into full steps, shifts the running mean.
  expected = _steps(one, 1)[0].batch_stats
  assert bool(expected) == (block == 'released')
  _close(expected, _steps(many, 1)[0].batch_stats, rtol=1e-5, atol=1e-6)


def test_what_is_planned_is_what_trains(data):
  task = _task(data, _mesh(2, 2, 2))
  batches = task.train_iterator()
  batch = next(batches)
  batches.close()
  for name, planned in task.abstract_batch.items():
    assert (planned.shape, planned.dtype) == (
      batch[name].shape,
      batch[name].dtype,
    )
    assert planned.sharding == batch[name].sharding
  with sharding.use(task.mesh):
    step = task.train_step.__wrapped__.lower(task.abstract_state, batch)
  parts = (facts.Counted(len(x)) for x in (data.train, data.val, data.test))
  sizes = sources.Dataset(*parts, class_names=data.class_names)
  planned = _task(sizes, task.mesh)
  assert planned.lower_step().as_text() == step.as_text()


def test_compiled_step_splits_what_the_rules_say(data):
  compiled = _task(data, _mesh(2, 2, 2)).lower_step().compile()
  placed = compiled.output_shardings[0].params['block_00']
  spec = jax.sharding.PartitionSpec
  assert placed['in_proj']['kernel'].spec[:2] == ('fsdp', 'tensor')
  assert placed['out_proj']['kernel'].spec == spec('tensor', None, 'fsdp')
  # Attention logits: 8 images over data x fsdp, 2 heads over tensor.
  assert 'f32[2,1,17,17]' in compiled.as_text()
  assert 'f32[8,2,17,17]' not in compiled.as_text()


def test_input_gradient_penalty_enters_the_loss(data):
  _, plain = _steps(_task(data), 1)
  _, once = _steps(_task(data, **{'loss.input_gradient_penalty': 1.0}), 3)
  _, twice = _steps(_task(data, **{'loss.input_gradient_penalty': 2.0}), 3)
  # The head starts at zero, so the first step has no gradient to penalise.
  np.testing.assert_allclose(once[0]['loss'], plain[0]['loss'], rtol=1e-6)
  assert twice[2]['loss'] > once[2]['loss'] > 0


@pytest.mark.parametrize('batch_size', [1, 5, 8, 23])
def test_evaluation_counts_every_image_once(data, batch_size):
  task = _task(data, **{'eval.batch_size': batch_size})
  state = task.init()
  variables, _ = task.variables(vars(state))
  result = task.evaluate(variables, data.val)
  assert result.values['num_examples'] == 23
  np.testing.assert_array_equal(result.labels, data.val.labels)
  expected = task.predict(variables, jnp.asarray(data.val.images))
  np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)


def test_per_layer_columns(data):
  overrides = {'diagnostics.per_layer': True, 'model.depth': 2}
  task = _task(data, **overrides, **{'model.init': 'torch'})
  _, rows = _steps(task, 1)
  for name in ('attn_logit_max', 'attn_entropy', 'residual_rms', 'grad_norm'):
    for layer in ('00', '01'):
      assert np.isfinite(rows[0][f'{name}/{layer}'])
  total = np.sqrt(sum(rows[0][f'grad_norm/0{i}'] ** 2 for i in range(2)))
  assert 0 < total <= rows[0]['grad_norm'] * (1 + 1e-5)
  assert 0 < rows[0]['attn_entropy/00'] <= np.log(17) + 1e-5
