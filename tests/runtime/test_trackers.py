"""TensorBoard and Weights & Biases get a run's numbers, and can't end it."""

import io
import sys
import types

import numpy as np
import pytest

from vit22b_jax.runtime import workdir


def archive():
  """Three images of a classifier of two classes, the last one wrong."""
  out = io.BytesIO()
  np.savez(
    out,
    images=np.zeros((3, 5, 5, 3), np.uint8),
    image_rows=[0, 2, 3],
    labels=[0, 1, 1, 0],
    probabilities=np.eye(2)[[0, 1, 1, 1]],
    class_names=['cat', 'dog'],
  )
  return out.getvalue()


def run(folder):
  """Writes a config, two steps, an image and a final evaluation."""
  folder.write_json(workdir.CONFIG, {'seed': 1, 'optim': {'b1': 0.9}})
  for step, logit in ((1, 5.0), (2, 3.0)):
    folder.diagnostics(step, {'max_logit': logit, 'grad_norm': 0.5})
  folder.metrics(2, {'train/loss': 1.5})
  folder.image('samples', 2, np.zeros((3, 5, 3), np.uint8))
  folder.write_bytes(workdir.PREDICTIONS, archive())
  folder.write_json(
    workdir.EVAL, {'step': 2, 'split': 'test', 'top1': 0.5, 'num_examples': 4}
  )
  folder.close()


def test_tensorboard_gets_peaks_test_numbers_and_hyperparameters(tmp_path):
  from tensorboard.backend.event_processing import plugin_event_accumulator
  from tensorboard.util import tensor_util

  run(workdir.Workdir(tmp_path, tensorboard=True))
  events = plugin_event_accumulator.EventAccumulator(str(tmp_path))
  events.Reload()
  found = {
    tag: float(tensor_util.make_ndarray(events.Tensors(tag)[0].tensor_proto))
    for tag in events.Tags()['tensors']
    if not tag.startswith(('samples', 'test/predictions', '_hparams_'))
  }
  assert found == {
    'train/loss': 1.5,
    'diagnostics/max_logit': 5.0,  # the larger of two steps
    'diagnostics/grad_norm': 0.5,
    'test/top1': 0.5,
  }
  assert {'samples', 'test/predictions'} <= {*events.Tags()['tensors']}
  assert '_hparams_/session_start_info' in events.Tags()['tensors']


@pytest.fixture
def wandb(monkeypatch):
  """A module in place of wandb, which notes the calls that it would keep."""
  calls = []

  class Run:
    def __init__(self):
      self.step, self.axes = 0, {}

    def define_metric(self, name, step_metric=None):
      self.axes[name] = step_metric

    def log(self, row, step=None):
      if step is None:  # it counts rows; their axis is a number among them
        step = row[self.axes['*']]
        row = {k: v for k, v in row.items() if k != self.axes['*']}
      elif step < self.step:
        return  # "Steps must be monotonically increasing"
      else:
        self.step = step
      calls.append(('log', step, row))

    def finish(self):
      calls.append(('finish',))

  def init(**options):
    calls.append(('init', options))
    return Run()

  module = types.ModuleType('wandb')
  module.init = init
  module.Image = lambda image: ('image', image.shape)
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return calls


def test_weights_and_biases_gets_the_same(tmp_path, wandb):
  run(workdir.Workdir(tmp_path / 'run', wandb='vits'))
  (_, options), *rest = wandb
  assert options['project'] == 'vits' and options['name'] == 'run'
  assert options['config'] == {'seed': 1, 'optim.b1': 0.9}
  others = []
  for name in ('run', 'other'):
    del wandb[:]
    run(workdir.Workdir(tmp_path / name, wandb='vits'))
    others.append(wandb[0][1]['id'])
  assert others[0] == options['id'] != others[1]
  row = {'diagnostics/max_logit': 5.0, 'diagnostics/grad_norm': 0.5}
  assert rest == [
    ('log', 2, {'train/loss': 1.5} | row),
    ('log', 2, {'samples': ('image', (3, 5, 3))}),
    ('log', 2, {'test/top1': 0.5}),
    ('log', 2, {'test/predictions': ('image', (112, 768, 3))}),
    ('finish',),
  ]


def test_images_of_several_classes_are_not_shown(tmp_path, wandb):
  folder = workdir.Workdir(tmp_path, wandb='vits')
  found = dict(np.load(io.BytesIO(archive())))
  out = io.BytesIO()
  np.savez(out, targets=np.eye(2)[found.pop('labels')], **found)
  folder.write_bytes(workdir.PREDICTIONS, out.getvalue())
  folder.write_json(workdir.EVAL, {'step': 2, 'split': 'test', 'map': 0.5})
  folder.close()
  assert ('log', 2, {'test/map': 0.5}) in wandb
  assert not any('test/predictions' in call[-1] for call in wandb)


def test_earlier_steps_reach_weights_and_biases(tmp_path, wandb):
  folder = workdir.Workdir(tmp_path, wandb='vits')
  folder.metrics(8, {'train/loss': 1.5})
  # The best checkpoint may be of any step.
  folder.write_json(workdir.EVAL, {'step': 6, 'split': 'test', 'top1': 0.5})
  folder.truncate(4)  # resumed from an older checkpoint
  folder.metrics(5, {'train/loss': 1.25})
  folder.image('samples', 5, np.zeros((3, 5, 3), np.uint8))
  folder.close()
  assert [call for call in wandb if call[0] == 'log'] == [
    ('log', 8, {'train/loss': 1.5}),
    ('log', 6, {'test/top1': 0.5}),
    ('log', 5, {'train/loss': 1.25}),
    ('log', 5, {'samples': ('image', (3, 5, 3))}),
  ]


def test_one_workdir_is_one_run_there(tmp_path, wandb):
  for _ in range(2):
    run(workdir.Workdir(tmp_path / 'run', wandb='vits'))
  ids = [call[1]['id'] for call in wandb if call[0] == 'init']
  assert ids[0] == ids[1]


def test_without_wandb_the_run_goes_on(tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  run(workdir.Workdir(tmp_path, wandb='vits'))
  assert (tmp_path / 'eval.json').exists()
  assert 'Nothing more is written to Weights & Biases' in caplog.text
