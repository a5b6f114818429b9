"""The probe: searches, switches, one program for all rates, and its files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import digits_vit22b_ti
from vit22b_jax import errors
from vit22b_jax.modes import probe, trials
from vit22b_jax.runtime import lock, runs, sharding
from vit22b_jax.tasks import classification
from vit22b_jax.training import diagnostics
from vit22b_jax.weights import timm


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


def search(is_stable, start):
  stable = explodes = None
  tried = []
  while rate := probe.next_rate(stable, explodes, start):
    tried.append(rate)
    if is_stable(rate):
      stable = rate
    else:
      explodes = rate
  assert len(tried) == len(set(tried)) < 50
  return stable, explodes


@pytest.mark.parametrize('limit', [3e-7, 0.004, 0.03, 7.0])
@pytest.mark.parametrize('start', [1e-4, 0.5])
def test_search_ends_at_neighboring_rates_around_the_limit(limit, start):
  stable, explodes = search(lambda rate: rate < limit, start)
  assert stable < limit <= explodes
  assert explodes / stable == pytest.approx(probe.RATIO)


def test_search_leaves_out_what_is_beyond_its_range():
  stable, explodes = search(lambda rate: True, 1e-3)
  assert explodes is None and stable > probe.HIGHEST / 2
  stable, explodes = search(lambda rate: False, 1e-3)
  assert stable is None and explodes < probe.LOWEST * 2


class Scripted:
  """A program that explodes at given steps, by rate; some recover."""

  def __init__(self, explosions, transients=()):
    self.explosions, self.transients = explosions, transients
    self.calls = []

  def __call__(self, *_):
    return self

  def trial(self, rate, steps, stop):
    self.calls.append((round(rate, 6), steps, stop))
    step = self.explosions(rate)
    exploded = step if step and step <= steps else None
    return {
      'rate': rate,
      'steps': steps,
      'exploded': exploded,
      'moved_first': None,
      'layer': None,
      'recovered': bool(exploded) and not stop and rate in self.transients,
      'last_loss': rate,
      'max_logit': [1.0],
      'max_abs_grad': [1.0],
    }


def explode_at(rate):
  return 3 if rate >= 0.008 else 312 if rate >= 0.004 else None


@pytest.fixture
def probed(config, tmp_path, monkeypatch):
  """The record of a probe of the unchanged config alone, and its trials."""

  def run(program):
    monkeypatch.setattr(trials, 'Program', program)
    monkeypatch.setattr(trials, 'SWITCHES', {})
    monkeypatch.setattr(
      classification.Classification, 'load_data', lambda config: None
    )
    mine = config.copy_and_resolve_references()
    mine.optim.learning_rate = 0.004
    probe.run(mine, tmp_path, None, minutes=5)
    return json.loads((tmp_path / 'probe.json').read_text())

  return run


def test_late_explosions_and_transients_are_told(probed):
  """A stable rate is trained for longer, and lower until one stays stable."""
  program = Scripted(explode_at, transients=(0.008,))
  record = probed(program)
  assert program.calls == [
    (0.004, 150, True),
    (0.008, 150, True),
    (0.005657, 150, True),
    (0.008, 150, False),
    (0.005657, 450, True),
    (0.004, 450, True),
    (0.002828, 450, True),
  ]
  bounds = record['switches']['']
  assert bounds['stable_at'] == pytest.approx(0.005657, rel=1e-3)
  assert bounds['explodes_at'] == 0.008
  assert record['advice'] == (
    'Tolerates a learning rate of 0.00283 (0.008 recovers from its explosion; '
    '0.00566 explodes late, at step 312; 0.004 explodes late, at step 312).'
  )
  # Once more: all of it is known.
  assert probed(again := Scripted(explode_at)) == record
  assert not again.calls


@pytest.mark.parametrize(
  ('stable_at', 'end'),
  [
    (0.004, '; no switch that was tried allows more.'),
    (0.008, '; model.final_norm=True would allow 0.008 within 150 steps.'),
  ],
)
def test_a_switch_is_compared_over_as_many_steps_as_it_ran(stable_at, end):
  late = {'switch': '', 'steps': probe.LATE_STEPS, 'exploded': None}
  found = probe.advice(
    {
      'switches': {
        '': {'stable_at': 0.004, 'explodes_at': 0.008},
        'model.final_norm': {'value': True, 'stable_at': stable_at},
      },
      'trials': {'late': {**late, 'rate': 0.002}},  # 0.004 explodes by then
    }
  )
  assert found == f'Tolerates a learning rate of 0.002{end}'


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


@pytest.mark.slow
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


def test_a_trial_starts_from_the_weights_to_fine_tune(
  config, mesh, data, tmp_path
):
  """And float16's overflows explode nothing, unless nothing else is left."""
  mine = config.copy_and_resolve_references()
  mine.model.dtype = 'float16'
  task = classification.Classification(mine, mesh, list(data.names), data)
  params = jax.tree.map(np.array, task.init_state().params)
  head = params['head']['logits']
  head['kernel'][:, 0], head['bias'] = 0.01, head['bias'] + 3
  file, size = tmp_path / 'model.safetensors', mine.data.image_size
  timm.write(file, task.model, params, {}, size)
  mine.init_from = str(file)
  program = trials.Program(trials.flip(mine, '')[0], mesh, data)
  trial = program.trial(1e-6, 1, stop=True)
  assert trial['max_logit'] == [pytest.approx(3.0, abs=0.1)]  # a new one: 0
  scale = program._fresh.loss_scale

  def from_scale(value):
    started = scale.replace(scale=jnp.float32(value))
    program._fresh = program._fresh.replace(loss_scale=started)
    return program.trial(1e-6, 60, stop=False)

  trial = from_scale(2.0**40)
  assert trial['max_abs_grad'][0] is None and trial['max_abs_grad'][-1] < 10
  assert trial['exploded'] is None
  trial = from_scale(2.0**120)
  assert len(trial['max_abs_grad']) == diagnostics.STUCK_STEPS
  assert trial['exploded'] == 1  # the first of the steps that nothing left
  assert not trial['recovered']


def test_weights_that_do_not_fit_end_a_probe(config, mesh, tmp_path):
  other = config.copy_and_resolve_references()
  other.init_from = str(tmp_path / 'none.safetensors')
  with pytest.raises(errors.UserError, match=r'none\.safetensors'):
    probe.run(other, tmp_path / 'run', mesh, minutes=5)


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
  assert any(name.endswith(' 4') for name in record['trials'])
  assert record['advice'] in (tmp_path / 'probe.html').read_text()
  assert probe.run(config, tmp_path, mesh, minutes=5) == 0
  assert json.loads((tmp_path / 'probe.json').read_text()) == record
  other = config.copy_and_resolve_references()
  other.seed = 7
  with pytest.raises(errors.UserError, match='seed'):
    probe.run(other, tmp_path, mesh, minutes=5)
  other = config.copy_and_resolve_references()
  other.diagnostics.max_logit = 50.0
  with pytest.raises(errors.UserError, match='max_logit: 4000'):
    probe.run(other, tmp_path, mesh, minutes=5)
  with lock.held(tmp_path), pytest.raises(errors.UserError, match='in use'):
    probe.run(config, tmp_path, mesh, minutes=5)
  for key in ('last_loss', 'exploded'):
    broken = json.loads(json.dumps(record))
    for trial in broken['trials'].values():
      del trial[key]
    (tmp_path / 'probe.json').write_text(json.dumps(broken))
    with pytest.raises(errors.UserError, match=r'probe.json is damaged'):
      probe.run(config, tmp_path, mesh, minutes=5)
  (tmp_path / 'probe.json').write_text('{"trials": 3}')
  with pytest.raises(errors.UserError, match=r'probe.json is damaged'):
    runs.read_probe(epath.Path(tmp_path) / 'probe.json')
