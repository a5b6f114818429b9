"""Schedules against the golden ones, rules against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from vit22b_jax.training import optim


def section(**overrides):
  return {**common.classification().optim, **overrides}


def rates(name, *, total, warmup=0, learning_rate=1.0, start=0, epoch=1):
  schedule = optim.make_schedule(
    name,
    learning_rate=learning_rate,
    warmup_steps=warmup,
    total_steps=total,
    decay_start=start or total // 2,
    steps_per_epoch=epoch,
  )
  return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total)))


def steps_of(params, gradients, batch_size=2, **overrides):
  """Parameters after one step for each gradient, at a constant rate."""
  tx, _ = optim.make(
    section(**{**overrides, 'schedule': 'constant'}),
    batch_size=batch_size,
    steps_per_epoch=7,
    total_steps=7,
  )
  state = tx.init(params)
  for gradient in gradients:
    updates, state = tx.update(gradient, state, params)
    params = jax.tree.map(lambda p, u: p + u, params, updates)
  return params


def test_multistep_equals_the_golden_schedule(golden):
  expected = np.repeat(golden('schedules')['multistep'], 11)
  got = rates('multistep', total=200 * 11, learning_rate=1e-3)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_multistep_of_a_run_of_two_steps_falls_at_each_milestone():
  np.testing.assert_allclose(rates('multistep', total=2), [1, 0.25])


@pytest.mark.parametrize('epoch', [1, 7, 49])
def test_linear_equals_the_golden_schedule(golden, epoch):
  expected = np.repeat(golden('schedules')['linear'], epoch)
  total = 200 * epoch
  got = rates('linear', total=total, learning_rate=2e-4, epoch=epoch)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_released_linear_falls_a_hundredth_an_epoch_from_the_hundredth():
  got = rates('linear_released', total=200 * 49, epoch=49)
  e = np.arange(200 * 49) // 49
  expected = np.where(e < 100, 1, 1 - (e - 100) / 100)
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize('name', ('linear', 'linear_released'))
def test_linear_holds_until_its_start_in_a_run_of_less_than_an_epoch(name):
  got = rates(name, total=10, epoch=100, start=6)
  np.testing.assert_array_equal(got[:6], 1)
  assert ((got >= 0) & (got <= 1)).all()


@pytest.mark.parametrize('name', ('linear', 'linear_released'))
def test_linear_reads_its_start(name):
  _, schedule = optim.make(
    section(schedule=name, decay_start='90%', learning_rate=1.0),
    batch_size=2,
    steps_per_epoch=5,
    total_steps=100,
  )
  assert schedule(89) == 1 > schedule(95)


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_warm_up_rises_linearly_to_the_peak_and_never_above(name):
  got = rates(name, total=101, warmup=7, learning_rate=3.0)
  np.testing.assert_allclose(got[:7], 3.0 * np.arange(1, 8) / 7, rtol=1e-5)
  assert got.max() <= 3.0 + 1e-6
  assert (np.diff(got[7:]) <= 1e-6).all()


def test_cosine_ends_near_zero_and_is_half_way_in_the_middle():
  got = rates('cosine', total=1000, warmup=200)
  np.testing.assert_allclose(got[600], 0.5, atol=1e-6)
  assert got[-1] < 1e-5


def test_rsqrt_decays_by_the_root_then_cools_down_to_zero():
  got = rates('rsqrt', total=1000, warmup=100)
  np.testing.assert_allclose(got[400], 0.5, rtol=1e-6)
  np.testing.assert_allclose(got[830] / got[915], 2, rtol=0.06)
  assert got[-1] < 0.01


def test_durations_reach_the_schedule():
  _, schedule = optim.make(
    section(warmup='2 epochs', schedule='constant', learning_rate=1.0),
    batch_size=2,
    steps_per_epoch=5,
    total_steps=100,
  )
  np.testing.assert_allclose([schedule(0), schedule(9)], [0.1, 1], rtol=1e-6)


def test_adamw_equals_the_written_out_rule():
  rng = np.random.default_rng(0)
  w = rng.standard_normal(5)
  gradients = rng.standard_normal((3, 5))
  got = steps_of(
    {'kernel': jnp.asarray(w, jnp.float32)},
    [{'kernel': jnp.asarray(g, jnp.float32)} for g in gradients],
    learning_rate=1e-2,
    weight_decay=0.1,
  )
  m = v = 0.0
  for t, g in enumerate(gradients, 1):  # Loshchilov & Hutter, Algorithm 2
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    w = w * (1 - 1e-2 * 0.1)
    w -= 1e-2 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
  np.testing.assert_allclose(got['kernel'], w, atol=1e-6)


def test_sgd_and_adagrad_add_the_decay_to_the_gradient():
  params, gradient = {'kernel': jnp.array([2.0])}, {'kernel': jnp.array([3.0])}
  common_ = {'learning_rate': 0.1, 'weight_decay': 0.5}
  got = steps_of(params, [gradient] * 2, name='sgd', momentum=0.9, **common_)
  first = 2 - 0.1 * 4
  second = first - 0.1 * (0.9 * 4 + 3 + 0.5 * first)
  np.testing.assert_allclose(got['kernel'], [second], rtol=1e-6)
  got = steps_of(params, [gradient] * 2, name='adagrad', **common_)
  g1, w1 = 4, 2 - 0.1
  g2 = 3 + 0.5 * w1
  expected = w1 - 0.1 * g2 / np.sqrt(g1**2 + g2**2)
  np.testing.assert_allclose(got['kernel'], [expected], rtol=1e-6)


def test_adam_moves_by_the_rate_on_the_first_step():
  params, gradient = {'bias': jnp.zeros(3)}, {'bias': jnp.array([5.0, -2, 1])}
  got = steps_of(params, [gradient], name='adam', learning_rate=0.01)
  np.testing.assert_allclose(got['bias'], [-0.01, 0.01, -0.01], rtol=1e-4)


def test_clipping_uses_the_norm_over_all_leaves():
  params = {'a': {'bias': jnp.zeros(1)}, 'b': {'kernel': jnp.zeros((1, 1))}}
  gradient = {
    'a': {'bias': jnp.full(1, 30.0)},
    'b': {'kernel': jnp.full((1, 1), 40.0)},
  }
  arguments = {'name': 'sgd', 'learning_rate': 1.0, 'weight_decay': 0.0}
  got = steps_of(params, [gradient], clip_norm=10.0, **arguments)
  np.testing.assert_allclose(got['a']['bias'], -6, rtol=1e-6)
  np.testing.assert_allclose(got['b']['kernel'], -8, rtol=1e-6)
  got = steps_of(params, [gradient], clip_norm=0.0, **arguments)
  np.testing.assert_allclose(got['b']['kernel'], -40, rtol=1e-6)


def test_adam_of_cyclegan_equals_the_written_out_rule():
  rng = np.random.default_rng(0)
  w, m, v = rng.standard_normal(5), 0.0, 0.0
  gradients = rng.standard_normal((3, 5))
  got = steps_of(
    {'kernel': jnp.asarray(w, jnp.float32)},
    [{'kernel': jnp.asarray(g, jnp.float32)} for g in gradients],
    **{**common.translation().optim, 'learning_rate': 1e-2},
  )
  for t, g in enumerate(gradients, 1):  # Kingma & Ba, Algorithm 1
    m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g**2
    w = w - 1e-2 * m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
  np.testing.assert_allclose(got['kernel'], w, atol=1e-6)


@pytest.mark.parametrize('decay', ['matrices', 'all'])
def test_decay_reaches_matrices_only_or_everything(decay):
  names = ('kernel', 'bias', 'scale', 'pos_embedding', 'cls')
  params = {'block_00': {name: jnp.ones(2) for name in names}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  got = steps_of(
    params, [zeros], decay=decay, weight_decay=0.5, learning_rate=0.1
  )['block_00']
  for name in names:
    decayed = decay == 'all' or name == 'kernel'
    np.testing.assert_allclose(got[name], 0.95 if decayed else 1, rtol=1e-6)


@pytest.mark.parametrize('decay', ['matrices', 'all'])
def test_the_head_may_decay_on_its_own(decay):
  def tree():
    return {'kernel': jnp.ones(2), 'bias': jnp.ones(2)}

  params = {
    'block_00': {'out': tree()},
    'map_pool': tree(),
    'head': {'logits': tree()},
  }
  got = steps_of(
    params,
    [jax.tree.map(jnp.zeros_like, params)],
    decay=decay,
    weight_decay=0.5,
    head_weight_decay=3.0,
    learning_rate=0.1,
  )
  vectors = 0.0 if decay == 'matrices' else 1.0
  for part, rate in (
    (got['block_00']['out'], 0.5),
    (got['map_pool'], 0.5),
    (got['head']['logits'], 3.0),
  ):
    np.testing.assert_allclose(part['kernel'], 1 - 0.1 * rate, rtol=1e-6)
    expected = 1 - 0.1 * rate * vectors
    np.testing.assert_allclose(part['bias'], expected, rtol=1e-6)


def _tree(depth, scanned):
  """Ones under the names of a classifier's weights."""
  blocks = {
    f'block_{i:02d}': {'out': {'kernel': jnp.ones(2)}} for i in range(depth)
  }
  if scanned:
    blocks = {'blocks': {'out': {'kernel': jnp.ones((depth, 2))}}}
  embeddings = {
    'cls': jnp.ones(2),
    'patch_embedding': {'kernel': jnp.ones(2)},
    'positions': {'pos_embedding': jnp.ones(2)},
  }
  last = {
    'final_norm': {'scale': jnp.ones(2)},
    'head': {'logits': {'kernel': jnp.ones(2)}},
  }
  return {**embeddings, **blocks, **last}


@pytest.mark.parametrize('scanned', [False, True])
def test_layer_decay_lowers_the_rate_by_depth(scanned):
  """SGD at rate 1 on gradients of 1; the decay of weights is scaled too."""
  params = _tree(3, scanned)
  got = steps_of(
    params,
    [params],
    name='sgd',
    learning_rate=1.0,
    weight_decay=0.0,
    clip_norm=0.0,
    layer_decay=0.5,
  )
  moved = jax.tree.map(lambda x: np.asarray(1 - x)[..., 0], got)
  assert moved['cls'] == moved['patch_embedding']['kernel'] == 0.5**4
  assert moved['positions']['pos_embedding'] == 0.5**4
  if scanned:
    blocks = moved['blocks']['out']['kernel'].tolist()
  else:
    blocks = [moved[f'block_0{i}']['out']['kernel'] for i in range(3)]
  assert blocks == [0.5**3, 0.5**2, 0.5]
  assert moved['final_norm']['scale'] == moved['head']['logits']['kernel'] == 1


def test_a_frozen_backbone_keeps_its_weights_and_has_no_moments():
  params = _tree(2, scanned=False)
  options = dict(
    freeze='backbone',
    learning_rate=0.1,
    weight_decay=0.5,
    clip_norm=1.0,
    name='sgd',
    momentum=0.0,
  )
  # The head's gradient alone is clipped: its norm is 10.
  gradients = jax.tree.map(lambda x: jnp.array([6.0, 8.0]), params)
  got = steps_of(params, [gradients], **options)
  head = got.pop('head')['logits']['kernel']
  np.testing.assert_allclose(head, [1 - 0.11, 1 - 0.13], rtol=1e-6)
  for x in jax.tree.leaves(got):
    np.testing.assert_array_equal(x, 1)
  tx, _ = optim.make(
    section(freeze='backbone'), batch_size=2, steps_per_epoch=1, total_steps=1
  )
  shapes = [x.shape for x in jax.tree.leaves(tx.init(params))]
  assert shapes.count((2,)) == 2  # Adam's moments of one matrix


def test_the_rate_may_follow_the_batch_size():
  params, gradient = {'kernel': jnp.zeros(1)}, {'kernel': jnp.ones(1)}
  options = dict(name='sgd', learning_rate=0.1, weight_decay=0.0)
  for base, expected in ((0, 0.1), (256, 0.4), (2048, 0.05)):
    got = steps_of(
      params, [gradient], batch_size=1024, base_batch_size=base, **options
    )
    np.testing.assert_allclose(got['kernel'], -expected, rtol=1e-6)
