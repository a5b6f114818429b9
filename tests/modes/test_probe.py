"""The probe: searches, switches, one program for all rates, and its files."""

import json

import jax
import numpy as np
import pytest

from configs import digits_vit22b_ti
from vit22b_jax import errors
from vit22b_jax.modes import probe, trials
from vit22b_jax.report import probe_page
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification


@pytest.fixture(scope='module')
def config():
  found = digits_vit22b_ti.get_config('tiny')
  found.optim.warmup = '0 steps'
  return found


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def data(config):
  return classification.Classification.load_data(config)


@pytest.mark.parametrize('limit', [3e-7, 0.004, 0.03, 7.0])
@pytest.mark.parametrize('start', [1e-4, 0.5])
def test_search_ends_at_neighboring_rates_around_the_limit(limit, start):
  tried = []

  def try_rate(rate):
    tried.append(rate)
    return {'exploded': 3 if rate >= limit else None}

  stable, explodes = probe.search(try_rate, start)
  assert stable < limit <= explodes
  assert explodes / stable == pytest.approx(probe.RATIO)
  assert len(tried) == len(set(tried))


@pytest.mark.parametrize(
  ('exploded', 'expected'), [(None, 'explodes'), (1, 'stable')]
)
def test_search_leaves_out_what_is_beyond_its_range(exploded, expected):
  found = probe.search(lambda rate: {'exploded': exploded}, 1e-3)
  stable, explodes = found
  assert (explodes if expected == 'explodes' else stable) is None


@pytest.mark.parametrize(
  ('switch', 'value'),
  [
    ('optim.warmup', '50 steps'),
    ('optim.clip_norm', 0.0),  # the config clips
    ('model.init', 'torch'),
    ('model.qk_norm', False),  # the preset has it on
    ('model.mlp_norm', True),
  ],
)
def test_switches_turn_what_the_config_or_the_preset_says(
  config, switch, value
):
  before = config.to_json()
  flipped, found = trials.flip(config, switch)
  section, key = switch.split('.')
  assert found == value == flipped[section][key]
  assert config.to_json() == before


def test_a_trial_takes_the_steps_of_a_run_at_that_rate(config, mesh, data):
  rate, steps = 0.003, 4
  plain = trials.flip(config, '')[0]
  plain.optim.learning_rate = rate
  task = classification.Classification(plain, mesh, list(data.names), data)
  state, losses = task.init_state(), []
  batches = task.train_batches()
  with sharding.mesh_context(mesh):
    for _ in range(steps):
      state, scalars = task.train_step(state, next(batches))
      losses.append(float(scalars[task.scalars.all.index('max_abs_grad')]))
  batches.close()
  program = trials.Program(trials.flip(config, '')[0], mesh, data)
  program.trial(0.5, 2, stop=False)  # leaves nothing behind
  trial = program.trial(rate, steps, stop=True)
  np.testing.assert_allclose(trial['max_abs_grad'], losses, rtol=1e-4)
  assert trial['exploded'] is None


def test_a_probe_is_written_and_goes_on(
  config, mesh, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(probe, 'STEPS', 3)
  monkeypatch.setattr(probe, 'LATE_STEPS', 4)
  monkeypatch.setattr(trials, 'SWITCHES', {'optim.warmup': ('0 steps', '2%')})
  monkeypatch.setattr(probe, 'HIGHEST', 0.01)
  assert probe.run(config, tmp_path, mesh, minutes=0.0) == 0
  assert 'minutes are over' in capsys.readouterr().out
  assert probe.run(config, tmp_path, mesh, minutes=5) == 0
  record = json.loads((tmp_path / 'probe.json').read_text())
  assert set(record['switches']) == {'', 'optim.warmup'}
  assert any(name.endswith('4 on') for name in record['trials'])
  assert record['advice'] in (tmp_path / 'probe.html').read_text()
  assert probe.run(config, tmp_path, mesh, minutes=5) == 0
  assert json.loads((tmp_path / 'probe.json').read_text()) == record
  other = config.copy_and_resolve_references()
  other.seed = 7
  with pytest.raises(errors.UserError, match='seed'):
    probe.run(other, tmp_path, mesh, minutes=5)
  (tmp_path / 'probe.json').write_text('{"trials": 3}')
  with pytest.raises(errors.UserError, match=r'probe.json is damaged'):
    probe_page.write(tmp_path)
