"""A whole translation by the command line's modes, interrupted and resumed."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import fruit_vitunet_ti
from tests import test_main, test_train
from vit22b_jax import api, errors, tasks, train
from vit22b_jax.runtime import checkpoint, runs, sharding

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore:.*images for 64 features'),
]


def _config():
  config = fruit_vitunet_ti.get_config('resnet,tiny')
  config.update_from_flattened_dict(
    {
      'discriminator.name': 'released',
      'log.tensorboard': False,
    }
  )
  return config


def _train(workdir):
  devices = jax.devices()[:1]
  mesh = sharding.make_mesh(devices=devices)
  return train.run(_config(), workdir, mesh)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of 4 steps that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('whole')
  assert _train(workdir) == 0
  return workdir


def _final(workdir):
  task, _ = api.open_run(
    workdir, runs.read_config(workdir), _data(runs.read_config(workdir))
  )
  manager = checkpoint.Manager(workdir, scores={}, read_only=True)
  found = manager.restore(task.abstract_state.to_dict())
  manager.close()
  return found


def _data(config):
  return tasks.TASKS[config.task].load_data(config)


def _rows(workdir):
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [
    {k: v for k, v in row.items() if not k.startswith('perf/')} for row in rows
  ]


@pytest.mark.parametrize('step', [2, 3])
def test_resumed_equals_uninterrupted(whole, tmp_path, monkeypatch, step):
  with monkeypatch.context() as patched:
    test_train.signal_after(patched, step)
    assert _train(tmp_path) == 143
  assert not (tmp_path / 'eval.json').exists()
  assert _train(tmp_path) == 0
  assert _rows(tmp_path) == _rows(whole)
  for name in ('diagnostics.csv', 'eval.json'):
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
  samples = {p.name: p.read_bytes() for p in (whole / 'samples').iterdir()}
  assert samples == {
    p.name: p.read_bytes() for p in (tmp_path / 'samples').iterdir()
  }
  assert len(samples) == 6
  jax.tree.map(
    np.testing.assert_array_equal, _final(tmp_path).state, _final(whole).state
  )


def test_evaluation_again_gives_the_same(whole):
  before = json.loads((whole / 'eval.json').read_text())
  (whole / 'eval.json').unlink()
  assert test_main.call('--mode=eval', f'--workdir={whole}') == 0
  after = json.loads((whole / 'eval.json').read_text())
  assert after.keys() == before.keys()
  for key, value in before.items():
    if isinstance(value, float):
      value = pytest.approx(value, rel=1e-4, abs=1e-5)
    assert after[key] == value, key


@pytest.mark.parametrize('direction', ['a2b', 'b2a'])
def test_translates_and_compares(whole, tmp_path, direction, capsys):
  photos = tmp_path / 'photos'
  photos.mkdir()
  rng = np.random.default_rng(0)
  for i, size in enumerate([(32, 32), (37, 53), (32, 32)]):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(photos / f'{i}.png')
  (photos / 'broken.jpg').write_bytes(b'no image')
  given = f'--workdir={whole}', f'--input={photos}', f'--direction={direction}'
  assert test_main.call('--mode=translate', *given) == 0
  assert 'broken.jpg' in capsys.readouterr().err
  made = whole / f'translated_{direction}'
  with Image.open(made / '1.png') as image:
    assert image.size == (53, 37)

  out = tmp_path / 'fid'
  compare = (
    '--mode=fid',
    f'--config={test_main.ROOT}/configs/fid.py:paper',
    '--config.fid.weights=random:0',
    f'--config.b={made}',
    f'--workdir={out}',
  )
  assert test_main.call(*compare, f'--config.a={whole}:{direction}') == 0
  assert 'uncalibrated' in capsys.readouterr().out
  result = json.loads((out / 'fid.json').read_text())
  assert result['num_a'] == result['num_b'] == 3 and result['fid'] > 0
  assert test_main.call(*compare, f'--config.a={whole}') == 2
  assert 'a2b or' in capsys.readouterr().err


def test_what_only_classifiers_do_is_refused(whole, capsys):
  assert test_main.call('--mode=export', f'--workdir={whole}') == 2
  assert "task 'classification'" in capsys.readouterr().err


def test_the_generator_from_python(whole):
  translator = api.load(whole)
  model, variables = translator.model, translator.variables
  images = np.zeros((1, 32, 32, 3), np.float32)
  made = jax.jit(model.apply)({'params': variables['gen_ab']}, images)
  assert made.shape == images.shape and np.abs(made).max() <= 1
  made = translator.translate(np.zeros((32, 32, 3), np.uint8), 'b2a')
  assert made.shape == (1, 32, 32, 3) and made.dtype == np.uint8
  with pytest.raises(errors.UserError, match="direction='ab'"):
    translator.translate(np.zeros((32, 32, 3), np.uint8), 'ab')
  with pytest.raises(errors.UserError, match='Scale to'):
    translator.translate(images, 'b2a')
