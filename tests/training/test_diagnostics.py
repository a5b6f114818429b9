"""The detector: thresholds, z-scores, transients, policies, explanations."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit22b_jax.training import diagnostics, explain

NAMES = ['max_abs_logit', 'max_abs_grad', 'grad_norm/00', 'grad_norm/01']


def _settings(**changes):
  values = dict(
    max_logit=4000.0,
    max_abs_grad=4000.0,
    zscore=20.0,
    on_explosion='record',
  )
  return types.SimpleNamespace(**(values | changes))


def _run(rows, settings):
  """Verdicts over a sequence of signals [T, 4]; the losses are 1."""

  def body(carry, row):
    monitor, step = carry
    monitor, verdict = diagnostics.observe(
      monitor, row, jnp.float32(1.0), step, jnp.asarray(False), settings, 30
    )
    return (monitor, step + 1), verdict

  monitor = diagnostics.init(60, rows.shape[1])
  carry = (monitor, jnp.zeros((), jnp.int32))
  (monitor, _), verdicts = jax.lax.scan(body, carry, jnp.asarray(rows))
  return monitor, jax.device_get(verdicts)


def _calm(steps, seed=0):
  noise = np.random.default_rng(seed).normal(size=(steps, 4))
  return np.exp(0.1 * noise + np.log([3.0, 0.5, 0.1, 0.1])).astype(np.float32)


def test_calm_signals_raise_no_alarm():
  _, verdicts = _run(_calm(300), _settings())
  assert not verdicts['verdict/onset'].any()
  assert not verdicts['verdict/keep'].any()


# Windows of a judged signal without an explosion: (steps, generator) -> values.
CALM_WINDOWS = {
  'negative': lambda n, rng: -10 + rng.normal(size=n),
  'about zero': lambda n, rng: 0.02 * rng.normal(size=n),
  'zeros': lambda n, rng: np.zeros(n),
  'tiny': lambda n, rng: 1e-30 * np.exp(rng.normal(size=n)),
  'constant': lambda n, rng: np.full(n, 3.0),
  'constant and tiny': lambda n, rng: np.full(n, 1e-12),
  'alternating signs': lambda n, rng: 5.0 * (-1.0) ** np.arange(n),
  'rising from negative': lambda n, rng: np.linspace(-10, 10, n),
  'falling': lambda n, rng: np.geomspace(10, 1e-6, n),
}


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('signal', [0, 1])
@pytest.mark.parametrize('window', CALM_WINDOWS)
def test_no_sign_and_no_size_of_a_calm_signal_is_an_explosion(
  window, signal, seed
):
  rows = _calm(200, seed)
  rng = np.random.default_rng(seed)
  rows[:, signal] = CALM_WINDOWS[window](200, rng)
  # The first positive, the first non-zero and a larger value.
  usual, calm = np.median(np.abs(rows[90:150, signal])), (0.9, 9e-3)[signal]
  for step, value in ((150, 0.03 * calm), (160, calm), (170, -calm)):
    rows[step, signal] = np.sign(value) * max(abs(value), 2 * usual)
  rows[:, 1] = np.abs(rows[:, 1])  # a gradient's size
  _, verdicts = _run(rows, _settings())
  assert not verdicts['verdict/onset'].any(), np.flatnonzero(
    verdicts['verdict/onset']
  )


@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('window', CALM_WINDOWS)
def test_every_window_is_left_by_an_explosion_of_either_sign(window, sign):
  rows = _calm(200)
  rows[:, 0] = CALM_WINDOWS[window](200, np.random.default_rng(0))
  rows[150, 0] = sign * 5000.0
  _, verdicts = _run(rows, _settings())
  assert np.flatnonzero(verdicts['verdict/onset']).tolist() == [150]


def test_a_window_of_an_older_version_still_judges():
  """It holds signed logits, where a newer one holds absolute ones."""
  rows = _calm(150)
  rows[:, 0] = np.concatenate([np.full(75, -9.0), np.full(75, 9.0)])
  _, verdicts = _run(rows, _settings())
  assert not verdicts['verdict/onset'].any()


@pytest.mark.parametrize('signal', [0, 1])
def test_threshold_is_one_onset_until_calm(signal):
  rows = _calm(250)
  rows[100:105, signal] = 5000.0
  rows[120, signal] = 5000.0  # within the calm time: the same event
  rows[200, signal] = 5000.0
  _, verdicts = _run(rows, _settings())
  assert np.flatnonzero(verdicts['verdict/onset']).tolist() == [100, 200]
  assert not verdicts['verdict/transient'].any()


def test_jump_far_below_the_threshold_is_found_by_zscore():
  rows = _calm(150)
  rows[100, 1] = 0.5 * 50
  _, verdicts = _run(rows, _settings())
  assert np.flatnonzero(verdicts['verdict/onset']).tolist() == [100]
  assert verdicts['verdict/zscore_max_abs_grad'][100] > 20
  assert np.abs(verdicts['verdict/zscore_max_abs_grad'][:100]).max() < 20


def test_tiny_spread_is_no_explosion():
  """A constant signal that moves by a percent has a huge z, and means none."""
  rows = np.tile(np.float32([3.0, 0.5, 0.1, 0.1]), (150, 1))
  rows[100] *= 1.05
  _, verdicts = _run(rows, _settings())
  assert not verdicts['verdict/onset'].any()


def test_warmup_alarms_are_transients_and_not_acted_upon():
  rows = _calm(120)
  rows[4, 0] = rows[100, 0] = 9000.0
  _, verdicts = _run(rows, _settings(on_explosion='skip_step'))
  assert np.flatnonzero(verdicts['verdict/transient']).tolist() == [4]
  assert np.flatnonzero(verdicts['verdict/keep']).tolist() == [100]


def test_halt_stops_everything_after_it():
  rows = _calm(120)
  rows[100, 0] = 9000.0
  monitor, verdicts = _run(rows, _settings(on_explosion='halt'))
  assert np.flatnonzero(verdicts['verdict/keep']).tolist() == list(
    range(100, 120)
  )
  assert verdicts['verdict/onset'].sum() == 1
  assert monitor.stopped
  np.testing.assert_array_equal(monitor.history[:40], rows[60:100])


def test_nonfinite_stops_whatever_the_policy():
  rows = _calm(50)
  rows[40, 1] = np.nan
  monitor, verdicts = _run(rows, _settings())
  finite = verdicts['verdict/finite']
  assert finite[:40].all() and not finite[40]
  assert verdicts['verdict/keep'][40:].all()
  assert np.isfinite(monitor.history[:40]).all()


def test_overflow_is_skipped_without_a_judgement():
  settings = _settings()
  monitor = diagnostics.init(60, 4)
  signals = jnp.array([3.0, jnp.inf, jnp.inf, jnp.nan])
  monitor, verdict = diagnostics.observe(
    monitor,
    signals,
    jnp.float32(1.0),
    jnp.int32(0),
    jnp.asarray(True),
    settings,
    30,
  )
  assert verdict['verdict/keep'] and verdict['verdict/finite']
  assert not verdict['verdict/onset'] and not monitor.stopped


def test_a_run_that_skips_every_step_stops():
  rows = _calm(200)
  rows[100:, 0] = 9000.0
  monitor, verdicts = _run(rows, _settings(on_explosion='skip_step'))
  last = 100 + diagnostics.STUCK_STEPS - 1
  assert np.flatnonzero(verdicts['verdict/stuck']).tolist() == [last]
  assert monitor.stopped


def test_zscore_by_hand():
  history = np.full((31, 1), np.nan, np.float32)
  history[:21, 0] = np.exp(np.arange(-10, 11))  # median 1, MAD 5 in logs
  z, median = diagnostics.robust_zscore(
    jnp.asarray(history),
    jnp.array([np.e**7.413], jnp.float32),
    jnp.array([np.finfo(np.float32).tiny]),
  )
  np.testing.assert_allclose(median, 1.0, rtol=1e-5)
  np.testing.assert_allclose(z, 1.0, rtol=1e-3)


def moved(history, names, step, values):
  signals = dict(zip(names, values.tolist(), strict=True))
  return explain.first_to_move(history, signals, step)


def test_explain_names_what_moved_first_and_where():
  rows = _calm(100)
  rows[93:, 3] *= 30.0  # block_01's gradient first
  rows[96:, 2] *= 30.0
  rows[98:, 0] = 5000.0
  history = np.full((60, 4), np.nan, np.float32)
  for step in range(100):
    history[step % 60] = rows[step]
  found = moved(history, NAMES, 99, rows[99])
  assert found == {'moved_first': 'grad_norm/01', 'layer': 'block_01'}
  named = [name.replace('/01', '/disc_a') for name in NAMES]
  other = moved(history, named, 99, rows[99])
  assert other == {'moved_first': 'grad_norm/disc_a', 'layer': 'disc_a'}
  # The window may have moved on by a step: the answer stays.
  history[100 % 60] = 7e7
  assert moved(history, NAMES, 99, rows[99]) == found


def test_explain_copes_with_nothing_and_with_nan():
  history = np.full((60, 4), np.nan, np.float32)
  rows = _calm(40)
  nothing = {'moved_first': None, 'layer': None}
  assert moved(history, NAMES, 0, rows[0]) == nothing
  history[:39] = rows[:39]
  assert moved(history, NAMES, 39, rows[39]) == nothing
  history[20] = np.nan  # a step that overflowed
  broken = rows[39].copy()
  broken[2] = np.nan
  found = moved(history, NAMES, 39, broken)
  assert found == {'moved_first': 'grad_norm/00', 'layer': 'block_00'}


def test_first_nonfinite_in_forward_then_backward_order():
  layers = ['block_00', 'block_01', 'block_02']
  good = {name: np.ones(3) for name in diagnostics.CAPTURED}
  norms = {f'grad_norm/0{i}': 1.0 for i in range(3)}
  bad = {**good, 'residual_rms': np.array([1.0, np.inf, np.nan])}
  assert 'block_01' in explain.first_nonfinite(bad, norms, layers)
  bad = {**norms, 'grad_norm/00': np.nan, 'grad_norm/01': np.inf}
  assert 'block_01' in explain.first_nonfinite(good, bad, layers)
  assert explain.first_nonfinite(good, norms, layers) is None


def test_measure_by_hand():
  grads = {'a': jnp.array([3.0, -4.0]), 'b': {'kernel': jnp.array([[12.0]])}}
  row = diagnostics.measure(
    loss=jnp.float32(2.0),
    max_logit=jnp.float32(-1.0),
    max_abs_logit=jnp.float32(7.0),
    grads=grads,
    updates={'a': jnp.array([0.6, 0.8])},
    params={'a': jnp.array([2.0, 1.0, 2.0])},
    clip_norm=6.5,
  )
  expected = dict(
    loss=2.0,
    max_logit=-1.0,
    max_abs_logit=7.0,
    max_abs_grad=12.0,
    grad_norm=13.0,
    clipped_grad_norm=6.5,
    update_norm=1.0,
    param_norm=3.0,
  )
  assert set(row) == {*diagnostics.COLUMNS, 'max_abs_logit'}
  for name, value in expected.items():
    np.testing.assert_allclose(row[name], value, rtol=1e-6)
