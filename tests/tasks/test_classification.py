"""The training step: what must not change its result, and what must."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from configs import digits_vit22b_ti
from vit22b_jax import errors
from vit22b_jax.data import augment, catalog, splits
from vit22b_jax.models import stacking
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import sharding, workdir
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
  return catalog.Dataset(split(48), split(23), split(13), names)


def _task(data, mesh=None, **overrides):
  config = digits_vit22b_ti.get_config('tiny')
  config.data.augment = 'none'
  config.model.patch_size = 2
  config.model.dropout = 0.0
  config.optim.ema = 0.0
  config.update_from_flattened_dict(overrides)
  mesh = mesh or _mesh()
  return classification.Classification(config, mesh, data.names, data)


def _normalized(task, images):
  data = task.config.data
  return augment.normalize(jnp.asarray(images), data.mean, data.std)


def _steps(task, count, state=None):
  state, batches = state or task.init_state(), task.train_batches()
  rows = []
  for _ in range(count):
    with sharding.mesh_context(task.mesh):
      state, scalars = task.train_step(state, next(batches))
    row = np.asarray(scalars).tolist()
    rows.append(dict(zip(task.scalars.all, row, strict=True)))
  batches.close()
  return state, rows


def _lowered(task):
  with sharding.mesh_context(task.mesh):
    return task.train_step.lower(task.abstract_state, task.abstract_batch)


def _close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_accumulated_equals_whole_batches(data):
  layers = {'diagnostics.per_layer': True}
  whole, rows = _steps(_task(data, **layers), 3)
  parts, other = _steps(_task(data, **layers, **{'optim.accumulate': 4}), 3)
  named = [name for name in rows[0] if name.startswith('residual_rms')]
  for name in ('loss', 'grad_norm', 'max_logit', 'train/top1', *named):
    np.testing.assert_allclose(
      [row[name] for row in rows], [row[name] for row in other], rtol=2e-5
    )
  _close(whole.params, parts.params, atol=2e-5)


def test_images_of_one_of_several_classes_train_as_those_of_one(data):
  one_hot = np.eye(7, dtype=np.float32)
  parts = [
    splits.ArraySplit(part.images, one_hot[part.labels])
    for part in (data.train, data.val, data.test)
  ]
  several = catalog.Dataset(*parts, data.names, multi_label=True)
  with pytest.raises(errors.UserError, match=r"use loss.kind='sigmoid'"):
    _task(several)
  sigmoid = {'loss.kind': 'sigmoid'}
  expected, found = (
    _steps(_task(each, **sigmoid), 2) for each in (data, several)
  )
  for one, other in zip(expected[1], found[1], strict=True):
    assert one.pop('train/top1') == other.pop('train/precision_at_1')
    assert one == other
  _close(expected[0].params, found[0].params, rtol=0)
  abstract = _task(several, **sigmoid).abstract_batch['label']
  assert (abstract.shape[1:], abstract.dtype) == ((7,), np.float32)


def test_a_frozen_backbone_leaves_gradients_to_the_head(data):
  overrides = {'optim.freeze': 'backbone', 'model.init': 'torch'}
  overrides['diagnostics.per_layer'] = True
  task = _task(data, **overrides)
  before = jax.device_get(task.init_state().params)
  state, (row,) = _steps(task, 1)
  assert row['grad_norm/00'] == 0 < row['grad_norm']
  after = jax.device_get(state.params)
  assert np.any(
    before.pop('head')['logits']['kernel'] != after['head']['logits']['kernel']
  )
  jax.tree.map(
    np.testing.assert_array_equal, before, {k: after[k] for k in before}
  )
  moments = jax.tree.leaves(state.opt_state, is_leaf=lambda x: x is None)
  assert sum(x.size for x in moments) < 1000


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_class_weights_multiply_losses(data, kind):
  """The head starts at zero, so all examples have the same loss."""
  overrides = {'loss.kind': kind}
  plain = _steps(_task(data, **overrides), 1)[1][0]['loss']
  task = _task(data, **overrides, **{'loss.class_weights': '1,1,1,1,1,1,8'})
  batches = task.train_batches()
  labels = np.asarray(next(batches)['label'])
  batches.close()
  weights = np.where(np.arange(7) == 6, 8, 1) * 48 / (42 + 6 * 8)
  found = _steps(task, 1)[1][0]['loss']
  np.testing.assert_allclose(found, plain * weights[labels].mean(), rtol=1e-5)


@pytest.fixture(scope='module')
def several():
  """Images of any number of 3 classes: none to all."""

  def split(count):
    images = np.random.default_rng(count).integers(
      0, 256, (count, 8, 8, 3), np.uint8
    )
    labels = np.arange(count)[:, None] >> np.arange(3) & 1
    return splits.ArraySplit(images, labels.astype(np.float32))

  parts = (split(48), split(23), split(13))
  return catalog.Dataset(*parts, ('a', 'b', 'c'), multi_label=True)


SEVERAL = {'loss.kind': 'sigmoid', 'model.init': 'torch'}


def test_images_of_several_classes_are_scored_by_average_precision(
  several, tmp_path
):
  task = _task(several, **SEVERAL, **{'eval.batch_size': 8})
  state, (row,) = _steps(task, 1)
  assert 0 <= row['train/precision_at_1'] <= 1 and 'train/top1' not in row
  variables, _ = task.variables(state.to_dict())
  run = workdir.Workdir(tmp_path)
  result = task.evaluator.test(variables, run)
  assert result['num_examples'] == 13
  assert result.keys() == {
    *('split', 'num_examples', 'loss', 'map', 'average_precision')
  }
  logits = task.model.apply(variables, _normalized(task, several.test.images))
  labels, scores = several.test.labels, np.asarray(logits)
  expected = [
    average_precision_score(labels[:, c], scores[:, c]) for c in (0, 1, 2)
  ]
  np.testing.assert_allclose(result['average_precision'], expected, rtol=1e-5)
  np.testing.assert_allclose(result['map'], np.mean(expected), rtol=1e-5)
  binary = np.logaddexp(0, np.where(labels > 0, -scores, scores))
  np.testing.assert_allclose(result['loss'], binary.sum(1).mean(), rtol=1e-5)
  with np.load(tmp_path / 'predictions.npz') as found:
    np.testing.assert_array_equal(found['targets'], labels)
  found = task.evaluator.validate(variables)
  assert found.keys() == {'loss', 'map'}
  best = evaluate.score(task.evaluator, {'val/map': 0.5, 'val/loss': 2.0})
  assert best == (0.5, -2.0)


def test_batch_norm_refuses_to_see_parts_of_a_batch():
  overrides = {'optim.accumulate': 2, 'model.block': 'released'}
  config = digits_vit22b_ti.get_config('tiny')
  config.update_from_flattened_dict(overrides)
  with pytest.raises(errors.UserError, match='whole'):
    classification.Classification.validate_config(config)


def test_a_pool_that_no_file_has_is_not_frozen_as_it_is_drawn(tmp_path):
  config = digits_vit22b_ti.get_config('tiny')
  config.init_from = str(tmp_path / 'vit.safetensors')
  (tmp_path / 'vit.safetensors').touch()
  config.optim.freeze, config.model.pool = 'backbone', 'map'
  with pytest.raises(errors.UserError, match='stay as it is drawn'):
    classification.Classification.validate_config(config)
  config.init_from = str(tmp_path)  # another run, which may have one
  classification.Classification.validate_config(config)


def test_rare_classes_are_made_up_for_once():
  config = digits_vit22b_ti.get_config('tiny')
  config.data.sampling = config.loss.class_weights = 'balanced'
  with pytest.raises(errors.UserError, match='do it twice: choose one'):
    classification.Classification.validate_config(config)


def test_average_of_weights_is_the_recurrence(data):
  """Its decay grows to the config's: (1 + n) / (10 + n) at most in step n."""
  task = _task(data, **{'optim.ema': 0.2, 'optim.learning_rate': 0.1})
  state, batches = task.init_state(), task.train_batches()
  expected = jax.tree.map(np.array, state.params)
  for decay in (1 / 10, 2 / 11, 0.2):
    with sharding.mesh_context(task.mesh):
      state, _ = task.train_step(state, next(batches))
    expected = jax.tree.map(
      lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p),
      expected,
      state.params,
    )
  batches.close()
  _close(state.ema, expected, rtol=1e-6, atol=1e-7)
  variables, kind = task.variables(state.to_dict())
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
  state, batches = task.init_state(), task.train_batches()
  before = jax.tree.map(np.array, state.params)
  scale = state.loss_scale.replace(scale=jnp.float32(2.0**60))
  with sharding.mesh_context(task.mesh):
    state, scalars = task.train_step(
      state.replace(loss_scale=scale), next(batches)
    )
  batches.close()
  row = dict(zip(task.scalars.all, np.asarray(scalars), strict=True))
  assert row['verdict/keep'] and not row['verdict/stopped']
  assert state.step == 1 and state.loss_scale.scale == 2.0**59
  _close(state.params, before, rtol=0)


# What a state can have, and nothing whose size the devices don't divide.
EVERYTHING = {
  'batch_size': 16,
  'data.augment': 'crop',
  'model.init': 'torch',
  'model.dropout': 0.1,
  'optim.accumulate': 2,
  'optim.ema': 0.9,
}
FORMS = {
  'vit22b': {'model.block': 'vit22b', 'model.pool': 'mean'},
  'vit': {'model.block': 'vit'},
}
# Keys' biases move all logits of a query alike: no gradient but rounding noise,
# which Adam turns into full steps.
NO_GRADIENT = 'qkv/bias'


@pytest.fixture(scope='module')
def on_one_device(data):
  """State and losses after 5 steps of a form of block, computed once."""
  return functools.cache(
    lambda form: _steps(_task(data, **EVERYTHING, **FORMS[form]), 5)
  )


def _same_weights(expected, found):
  """But for what rounding noise decides."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(expected),
    jax.tree.leaves(found),
    strict=True,
  )
  for (path, x), y in pairs:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not name.endswith(NO_GRADIENT):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  ('form', 'preset', 'sizes'),
  [
    pytest.param('vit22b', 'data', {}, marks=pytest.mark.slow),
    ('vit22b', 'fsdp+tensor', {}),
    pytest.param('vit', 'fsdp', {}, marks=pytest.mark.slow),
    pytest.param('vit22b', 'fsdp', {'data': 2}, marks=pytest.mark.slow),
    pytest.param('vit', 'data', {}, marks=pytest.mark.slow),
    pytest.param(
      'vit', 'fsdp+tensor', {'data': 2, 'fsdp': 2}, marks=pytest.mark.slow
    ),
  ],
)
def test_presets_equal_one_device(data, on_one_device, form, preset, sizes):
  expected, rows = on_one_device(form)
  mesh = sharding.make_mesh(preset, **sizes)
  task = _task(data, mesh, **EVERYTHING, **FORMS[form])
  state, other = _steps(task, 5)
  for name, rtol in (('loss', 1e-5), ('grad_norm', 1e-5), ('max_logit', 1e-4)):
    np.testing.assert_allclose(
      [row[name] for row in rows], [row[name] for row in other], rtol=rtol
    )
  _same_weights(expected.params, state.params)
  _same_weights(expected.ema, state.ema)
  compiled = _lowered(task).compile()
  jax.tree.map(
    _same_place,
    task.abstract_state,
    state,
    compiled.input_shardings[0][0],
    compiled.output_shardings[0],
  )


def test_a_frozen_backbone_on_a_mesh_equals_one_device(data):
  overrides = {'optim.freeze': 'backbone', 'model.init': 'torch'}
  one = _task(data, **overrides)
  many = _task(data, sharding.make_mesh('fsdp+tensor'), **overrides)
  expected, rows = _steps(one, 2)
  state, other = _steps(many, 2)
  for row, theirs in zip(rows, other, strict=True):
    np.testing.assert_allclose(row['loss'], theirs['loss'], rtol=1e-5)
  _same_weights(expected.params, state.params)


def _same_place(planned, array, before, after):
  """One array of a state lives where the rules say, in the program as well."""
  for placed in (array.sharding, before, after):
    assert placed.is_equivalent_to(planned.sharding, planned.ndim)
  part = planned.sharding.shard_shape(planned.shape)
  assert array.addressable_shards[0].data.shape == part


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'hidden', 'full'])
def test_scanned_blocks_on_a_mesh_equal_one_device(data, remat):
  overrides = EVERYTHING | FORMS['vit22b'] | {'model.dropout': 0.0}
  overrides['model.depth'] = 3
  one = _task(data, **overrides)
  overrides |= {'model.scan_layers': True, 'model.remat': remat}
  many = _task(data, sharding.make_mesh('fsdp+tensor'), **overrides)
  initial = stacking.stack(jax.device_get(one.init_state().to_dict()), 3)
  placed = jax.tree.map(lambda x: x.sharding, many.abstract_state.to_dict())
  start = many.abstract_state.replace(**jax.device_put(initial, placed))
  expected, rows = _steps(one, 5)
  state, other = _steps(many, 5, start)
  np.testing.assert_allclose(
    [row['loss'] for row in rows], [row['loss'] for row in other], rtol=1e-5
  )
  _same_weights(expected.params, stacking.unstack(state.params))


@pytest.mark.slow
def test_batch_norm_on_a_mesh_sees_the_global_batch(data):
  overrides = {
    'model.block': 'released',
    'model.norm': 'layer',
    'data.augment': 'standard',
    'model.dropout': 0.1,
  }
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  one, many = _task(data, **overrides), _task(data, mesh, **overrides)
  rows, other = _steps(one, 5)[1], _steps(many, 5)[1]
  np.testing.assert_allclose(
    [row['loss'] for row in rows], [row['loss'] for row in other], rtol=1e-5
  )
  # After one step: later, rounding noise in a bias that the norm cancels, which
  # Adam turns into full steps, shifts the running mean.
  expected = _steps(one, 1)[0].batch_stats
  assert expected
  _close(expected, _steps(many, 1)[0].batch_stats, rtol=1e-5, atol=1e-6)


def test_what_is_planned_is_what_trains(data):
  task = _task(data, _mesh(2, 2, 2))
  batches = task.train_batches()
  batch = next(batches)
  batches.close()
  for name, planned in task.abstract_batch.items():
    assert (planned.shape, planned.dtype) == (
      batch[name].shape,
      batch[name].dtype,
    )
    assert planned.sharding == batch[name].sharding
  with sharding.mesh_context(task.mesh):
    step = task.train_step.lower(task.abstract_state, batch)
  parts = (range(len(x)) for x in (data.train, data.val, data.test))
  sizes = catalog.Dataset(*parts, names=data.names)
  planned = _task(sizes, task.mesh)
  assert _lowered(planned).as_text() == step.as_text()


def test_no_device_holds_a_whole_of_what_is_split(data):
  overrides = EVERYTHING | FORMS['vit22b']
  mesh = sharding.make_mesh('fsdp+tensor')
  program = _lowered(_task(data, mesh, **overrides)).compile().as_text()
  # A kernel, its moments and gradients [D, N, 3K + F/N]: 4 parts by 2, and
  # gathered for a product. Gradients are summed over the parts of a batch.
  assert 'f32[8,1,80]' in program
  assert 'f32[32,2,80]' not in program
  # Attention logits: 8 images over fsdp, 2 heads over tensor.
  assert 'f32[2,1,16,16]' in program
  assert 'f32[8,2,16,16]' not in program
  # Pixels: a batch over fsdp, which is all that is there for it.
  assert 'u8[16,8,8,3]' not in program


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
  state = task.init_state()
  variables, _ = task.variables(state.to_dict())
  result = task.evaluator.evaluate(variables, data.val)
  assert result.values['num_examples'] == 23
  np.testing.assert_array_equal(result.labels, data.val.labels)
  expected = task.evaluator.predict(variables, jnp.asarray(data.val.images))
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
