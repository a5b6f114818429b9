"""The loop: an interrupted run ends as an uninterrupted one, bit for bit."""

import json
import math
import os
import shutil
import signal
from unittest import mock

import jax
import numpy as np
import pytest

from configs import digits_vit22b_ti
from vit22b_jax import api, errors, train
from vit22b_jax.modes import evaluate, setup
from vit22b_jax.runtime import checkpoint, preemption, records, runs, workdir
from vit22b_jax.tasks import classification, evaluators, fid_evaluator
from vit22b_jax.training import diagnostics


def _config(**overrides):
  config = digits_vit22b_ti.get_config('tiny')
  config.log.tensorboard = False
  config.model.dropout = 0.0
  config.optim.ema = 0.0
  config.eval.checkpoint = 'best'
  config.duration = '6 steps'
  config.checkpoint.every = '2 steps'
  config.eval.every = '4 steps'
  config.log.every = '4 steps'
  config.update_from_flattened_dict(overrides)
  return config


def _one_device():
  return jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape(1, 1, 1), ('data', 'fsdp', 'tensor')
  )


def _run(folder, **overrides):
  return train.run(_config(**overrides), folder, _one_device())


def _rows(folder, name='metrics.jsonl'):
  return [json.loads(x) for x in (folder / name).read_text().splitlines()]


def _without_speed(rows):
  return [
    {k: v for k, v in row.items() if not k.startswith('perf/')} for row in rows
  ]


def _final_state(folder):
  config = runs.read_config(folder)
  data = classification.Classification.load_data(config)
  task = classification.Classification(config, _one_device(), data.names, data)
  manager = checkpoint.Manager(folder, scores={}, read_only=True)
  found = manager.restore(task.abstract_state.to_dict())
  manager.close()
  return found


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of 6 steps that nothing interrupted."""
  folder = tmp_path_factory.mktemp('whole')
  assert _run(folder) == 0
  return folder


def test_files_of_a_run(whole):
  found = {path.name for path in whole.iterdir()}
  assert found >= {
    'config.json',
    'versions.json',
    'classes.json',
    'metrics.jsonl',
    'diagnostics.csv',
    'eval.json',
    'predictions.npz',
    'attention.npz',
    'checkpoints',
    'report.html',
  }
  lines = (whole / 'diagnostics.csv').read_text().splitlines()
  assert lines[0] == (
    'step,loss,max_logit,max_abs_grad,grad_norm,clipped_grad_norm,'
    'update_norm,param_norm'
  )
  assert [int(line.split(',')[0]) for line in lines[1:]] == [1, 2, 3, 4, 5, 6]
  result = json.loads((whole / 'eval.json').read_text())
  assert result['split'] == 'test' and result['num_examples'] == 359
  assert set(result) >= {'loss', 'top1', 'top5', 'auroc', 'step'}
  with np.load(whole / 'predictions.npz') as file:
    assert file['confusion'].sum() == len(file['labels']) == 359
    wrong = file['probabilities'].argmax(1) != file['labels']
    rows = file['image_rows']
    assert set(np.flatnonzero(wrong)) <= set(rows.tolist())
    assert file['images'].shape == (len(rows), 8, 8, 3)
  assert runs.read(whole).predictions['indices'].tolist() == [*range(359)]
  rows = _rows(whole)
  assert [row['step'] for row in rows] == [4, 4, 6, 6]


def signal_after(monkeypatch, last):
  """Sends this process a signal when the loop has done a step."""
  original = preemption.Watcher.should_stop

  def should_stop(watcher, step):
    if step == last:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(watcher, step)

  monkeypatch.setattr(preemption.Watcher, 'should_stop', should_stop)


@pytest.mark.parametrize('step', [3, 4])
def test_resumed_equals_uninterrupted(whole, tmp_path, monkeypatch, step):
  with monkeypatch.context() as patch:
    signal_after(patch, step)
    assert _run(tmp_path) == 128 + signal.SIGTERM
  assert not (tmp_path / 'eval.json').exists()
  assert (tmp_path / 'report.html').exists()
  assert _run(tmp_path) == 0

  expected, found = _final_state(whole), _final_state(tmp_path)
  assert found.step == expected.step == 6
  jax.tree.map(np.testing.assert_array_equal, found.state, expected.state)
  for name in ('diagnostics.csv', 'eval.json'):
    assert (tmp_path / name).read_text() == (whole / name).read_text()
  assert _without_speed(_rows(tmp_path)) == _without_speed(_rows(whole))


def test_every_part_of_the_state_resumes(tmp_path, monkeypatch):
  """Averages, batch statistics, loss scale and dropout's keys as well."""
  overrides = {
    'model.block': 'released',
    'model.dtype': 'float16',
    'model.dropout': 0.1,
    'optim.ema': 0.9,
  }
  assert _run(tmp_path / 'whole', **overrides) == 0
  with monkeypatch.context() as patch:
    signal_after(patch, 3)
    assert _run(tmp_path / 'parts', **overrides) == 128 + signal.SIGTERM
  assert _run(tmp_path / 'parts', **overrides) == 0
  expected = _final_state(tmp_path / 'whole').state
  found = _final_state(tmp_path / 'parts').state
  assert expected['ema'] and expected['batch_stats'] and expected['loss_scale']
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_unreadable_checkpoints_never_become_a_new_run(tmp_path):
  assert _run(tmp_path, duration='2 steps') == 0
  table = (tmp_path / 'diagnostics.csv').read_text()
  for file in (tmp_path / 'checkpoints').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  for _ in range(2):
    with pytest.raises(errors.UserError, match='can be read'):
      _run(tmp_path, duration='4 steps')
  assert (tmp_path / 'diagnostics.csv').read_text() == table


def test_a_finished_run_without_checkpoints_is_left_alone(whole, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole, folder)
  shutil.rmtree(folder / 'checkpoints')
  with pytest.raises(errors.UserError, match='checkpoints are gone'):
    _run(folder)
  for name in ('diagnostics.csv', 'eval.json'):
    assert (folder / name).read_text() == (whole / name).read_text()


def test_the_start_decides_the_run_and_is_read_once(whole, tmp_path):
  """Its weights are the best checkpoint's; they may be gone afterwards."""
  source, folder = tmp_path / 'source', tmp_path / 'run'
  shutil.copytree(whole, source)
  start = {'init_from': str(source), 'optim.learning_rate': 1e-30}
  assert _run(folder, **start, duration='2 steps') == 0
  best = api.load(source).variables['params']
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
    jax.device_get(api.load(folder).variables['params']),
    jax.device_get(best),
  )
  shutil.rmtree(source)
  assert _run(folder, **start) == 0
  with pytest.raises(errors.UserError, match='init_from'):
    _run(folder, **start | {'init_from': str(whole)})


def test_batch_norm_goes_on_from_another_run(tmp_path):
  block = {'model.head': 'mlp_bn', 'duration': '2 steps'}
  assert _run(tmp_path / 'a', **block) == 0
  start = {'init_from': str(tmp_path / 'a'), 'optim.learning_rate': 1e-30}
  config = _config(**block, **start)
  data = classification.Classification.load_data(config)
  task = classification.Classification(config, _one_device(), data.names, data)
  state = task.with_pretrained(task.init_state(), config.init_from)
  there = _final_state(tmp_path / 'a').state
  for name in ('params', 'batch_stats'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(state, name), there[name]
    )


def test_other_classes_are_refused(tmp_path):
  assert _run(tmp_path, duration='2 steps') == 0
  names = json.loads((tmp_path / 'classes.json').read_text())
  (tmp_path / 'classes.json').write_text(json.dumps([*names, 'more']))
  with pytest.raises(errors.UserError, match='11 classes'):
    _run(tmp_path, duration='4 steps')


def test_crash_without_a_save_loses_and_doubles_no_row(
  whole, tmp_path, monkeypatch
):
  """Killed in step 4: rows after checkpoint 2 are dropped and made again."""

  class Killed(BaseException):
    pass

  original = records.Recorder.row

  def row(recorder, pending):
    found = original(recorder, pending)
    if pending.step == 3:
      recorder._folder.flush()
      raise Killed
    return found

  for name in (workdir.EVAL, workdir.PREDICTIONS, workdir.ATTENTION):
    (tmp_path / name).write_text('{}')  # of an earlier, shorter end
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(records.Recorder, 'row', row)
    _run(tmp_path)
  assert not (tmp_path / workdir.EVAL).exists()
  assert not (tmp_path / workdir.PREDICTIONS).exists()
  assert not (tmp_path / workdir.ATTENTION).exists()
  assert len((tmp_path / 'diagnostics.csv').read_text().splitlines()) == 4
  assert _run(tmp_path) == 0
  for name in ('diagnostics.csv', 'eval.json'):
    assert (tmp_path / name).read_text() == (whole / name).read_text()
  assert _without_speed(_rows(tmp_path)) == _without_speed(_rows(whole))


def test_another_config_is_refused_and_a_longer_run_is_not(
  whole, tmp_path, capsys
):
  assert _run(tmp_path, duration='2 steps') == 0
  with pytest.raises(errors.UserError) as caught:
    _run(tmp_path, **{'optim.learning_rate': 1e-4, 'seed': 3})
  message = str(caught.value)
  assert 'optim.learning_rate' in message and 'seed' in message
  assert '--workdir' in message
  assert _run(tmp_path, **{'mesh.data': 1, 'duration': '6 steps'}) == 0
  assert "'2 steps' -> '6 steps'" in capsys.readouterr().out
  assert _final_state(tmp_path).step == 6


def test_a_resume_by_the_folder_keeps_the_command(tmp_path, monkeypatch):
  def command(*arguments):
    monkeypatch.setattr('sys.argv', ['main.py', *arguments])
    assert _run(tmp_path, duration='2 steps') == 0
    return json.loads((tmp_path / 'versions.json').read_text())['command']

  first = command('--config=x.py')
  assert first == 'python main.py --config=x.py'
  assert command('--workdir=x') == first


def test_a_best_checkpoint_that_is_gone_is_said(whole, tmp_path):
  shutil.copytree(whole, tmp_path / 'run')
  path = tmp_path / 'run' / 'metrics.jsonl'
  row = {'step': 5, 'val/top1': 1.0, 'val/loss': 0.0, 'val/num_images': 180}
  with path.open('a') as file:
    file.write(json.dumps(row) + '\n')
  config = runs.read_config(tmp_path / 'run')
  data = classification.Classification.load_data(config)
  task, manager = api.open_run(tmp_path / 'run', config, data)
  folder = workdir.Workdir(tmp_path / 'run')
  found = evaluate.finish(task, manager, folder)
  manager.close()
  assert found['checkpoint'] == 'another than the best'
  assert 'is gone' in found['checkpoint_note']


def test_evaluation_uses_the_best_checkpoint(whole):
  config = runs.read_config(whole)
  task, manager = api.open_run(
    whole, config, classification.Classification.load_data(config)
  )
  step, variables, kind = evaluate.restore(task, manager, 'best')
  rows = [row for row in _rows(whole) if 'val/top1' in row]
  best = max(rows, key=lambda row: row['val/top1'])
  assert step == best['step'] and kind == 'params'
  evaluation = json.loads((whole / 'eval.json').read_text())
  assert (evaluation['data'], evaluation['checkpoint']) == ('digits', 'best')
  result = task.evaluator.evaluate(variables, task.data.val)
  np.testing.assert_allclose(result.values['loss'], best['val/loss'], rtol=1e-6)
  manager.close()


def test_nonfinite_loss_saves_the_state_before_it(tmp_path, monkeypatch):
  """A poisoned bias in the third step: the layer is named, step 2 is saved."""
  original = classification.Classification.loss

  def poisoned(self, params, batch_stats, part):
    loss, aux = original(self, params, batch_stats, part)
    _, labels, _ = part
    return loss + (labels[0] == poison) * jax.numpy.log(-1.0), aux

  config = _config()
  data = classification.Classification.load_data(config)
  batches = classification.Classification(
    config, _one_device(), data.names, data
  ).train_batches()
  first = [int(next(batches)['label'][0]) for _ in range(4)]
  batches.close()
  poison = first[2]
  bad_step = first.index(poison) + 1
  monkeypatch.setattr(classification.Classification, 'loss', poisoned)
  with pytest.raises(errors.TrainingStopped, match=f'Step {bad_step}'):
    _run(tmp_path)
  found = _final_state(tmp_path) if bad_step > 1 else None
  if found:
    assert found.step == bad_step - 1
    assert not found.state['monitor'].stopped
  event = _rows(tmp_path, 'events.jsonl')[-1]
  assert event['kind'] == 'non_finite' and event['step'] == bad_step
  assert event['action'] == 'halt'
  assert (tmp_path / 'report.html').exists()


def test_a_failing_diagnosis_costs_neither_state_nor_event(monkeypatch):
  """Memory may be full at the step that is not finite."""
  r, state = mock.MagicMock(), mock.MagicMock()
  state.monitor.stopped = np.True_
  r.task.locate_nonfinite.side_effect = jax.errors.JaxRuntimeError(
    'RESOURCE_EXHAUSTED: Out of memory'
  )
  saved = []
  monkeypatch.setattr(
    train,
    'save',
    lambda *_, **__: saved.append(r.task.locate_nonfinite.call_count),
  )
  pending = records.Pending(3, None, None, None)
  row = {'verdict/finite': 0.0, 'loss': math.nan}
  with pytest.raises(errors.TrainingStopped, match=r'not found \(RESOURCE_EX'):
    train.stop(r, state, pending, row)
  assert saved == [0] and r.recorder.event.called


def test_float16_that_only_overflows_is_no_explosion():
  """50 steps skipped for gradients that aren't finite end a run."""
  task, folder = mock.MagicMock(), mock.MagicMock()
  task.scalars.signals = ['max_abs_grad']
  names = ('max_logit', *diagnostics.JUDGED, 'max_abs_logit', 'loss')
  row = dict.fromkeys(names, 1.0) | {'max_abs_grad': math.inf}
  row |= {'verdict/finite': 1.0, 'verdict/stuck': 1.0, 'verdict/stopped': 1.0}
  row |= {f'verdict/zscore_{k}': 0.0 for k in ('max_logit', 'max_abs_grad')}
  monitor = diagnostics.init(4, 1)
  records.Recorder(task, folder).event(
    60, row | {'verdict/transient': 0.0}, monitor
  )
  (event,) = folder.event.call_args.args
  assert (event['kind'], event['action']) == ('non_finite', 'halt')


def test_a_warm_up_longer_than_the_run_is_said(capsys):
  config = _config(**{'optim.warmup': '60 steps'})
  data = classification.Classification.load_data(config)
  task = classification.Classification(config, _one_device(), data.names, data)
  setup.introduce(task)
  said = capsys.readouterr().out
  assert 'Warm-up takes 60 steps' in said and 'comes to 10% of' in said


@pytest.mark.parametrize('policy', ['record', 'skip_step', 'halt'])
def test_explosion_policies(tmp_path, policy):
  overrides = {
    'diagnostics.on_explosion': policy,
    'diagnostics.max_abs_grad': 1e-6,
    'diagnostics.ignore': '1 steps',
    'duration': '3 steps',
  }
  if policy == 'halt':
    with pytest.raises(errors.TrainingStopped, match='Step 2'):
      _run(tmp_path, **overrides)
  else:
    assert _run(tmp_path, **overrides) == 0
  table = (tmp_path / 'diagnostics.csv').read_text().splitlines()[1:]
  param_norms = [row.split(',')[-1] for row in table]
  if policy == 'skip_step':
    assert param_norms[1] == param_norms[2]  # step 2 changed nothing
  elif policy == 'record':
    assert param_norms[1] != param_norms[2]
  event = _rows(tmp_path, 'events.jsonl')[0]
  assert event['kind'] == 'transient' and event['step'] == 1
  assert event['max_abs_logit'] >= abs(event['max_logit'])


def test_early_stop(tmp_path):
  overrides = {
    'optim.learning_rate': 1e-12,  # moves no weight of this initialisation
    'model.init': 'torch',
    'eval.every': '1 steps',
    'eval.early_stop': 2,
  }
  assert _run(tmp_path, **overrides) == 0
  assert [row['step'] for row in _rows(tmp_path) if 'val/top1' in row] == [
    1,
    2,
    3,
  ]
  assert _run(tmp_path, **overrides) == 0  # stays stopped
  assert _final_state(tmp_path).step == 3


def test_load_gives_the_evaluated_model(whole):
  predictor = api.load(whole)
  model, variables = predictor.model, predictor.variables
  config = runs.read_config(whole)
  data = classification.Classification.load_data(config)
  result = json.loads((whole / 'eval.json').read_text())
  images = (data.test.images / 255.0 - 0.305) / 0.376
  assert config.data.mean == (0.305,) * 3 and config.data.std == (0.376,) * 3
  logits = model.apply(variables, images.astype(np.float32))
  top1 = np.mean(logits.argmax(-1) == data.test.labels)
  np.testing.assert_allclose(top1, result['top1'], atol=1e-6)


def test_a_search_leaves_the_test_part_alone(tmp_path, capsys):
  assert _run(tmp_path, **{'eval.test': False}) == 0
  assert 'test part' not in capsys.readouterr().out
  assert not (tmp_path / workdir.EVAL).exists()
  rows = _rows(tmp_path)
  assert [row['step'] for row in rows if 'val/top1' in row] == [4, 6]


def test_a_finished_run_asked_for_fewer_steps_says_so(whole, tmp_path, capsys):
  run = shutil.copytree(whole, tmp_path / 'run')
  assert _run(run, duration='3 steps') == 0
  said = capsys.readouterr().out
  assert "has done 6 steps, more than the 3 of duration='3 steps'" in said
  assert 'Resuming' not in said and 'training steps, without' in said
  assert _final_state(run).step == 6


def test_equal_accuracies_are_told_apart_by_the_loss(tmp_path):
  rows = [(1, 0.7778, 0.6939), (2, 0.7778, 0.6385), (3, 0.7, 0.1)]
  lines = [
    json.dumps({'step': step, 'val/top1': top1, 'val/loss': loss})
    for step, top1, loss in rows
  ]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  found = evaluate.scores(evaluators.ClassificationEvaluator, tmp_path)
  assert max(found, key=found.get) == 2
  assert not evaluate.out_of_patience(found, 2)
  assert evaluate.out_of_patience(found, 1)


def test_what_is_not_a_number_is_never_the_best():
  """A precision without images, the distance of a generator that broke."""

  def score(evaluator, metric, value, loss):
    return evaluate.score(evaluator, {metric: value, 'val/loss': loss})

  nan, evaluator = float('nan'), evaluators.ClassificationEvaluator
  first, later = (score(evaluator, 'val/map', nan, x) for x in (2.0, 1.0))
  assert first < later < score(evaluator, 'val/map', 0.0, nan)
  evaluator = fid_evaluator.FidEvaluator
  assert score(evaluator, 'val/fid', nan, 0.0) < score(
    evaluator, 'val/fid', 1e9, 0.0
  )
