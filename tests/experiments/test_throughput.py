"""The benchmark: medians of alternating steps, and peers of the same size."""

import importlib.util

import jax
import numpy as np
import pytest

from experiments.throughput import overhead, training_step, translation_step
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification

# Seconds of each model's steps, the first one a warm-up.
SECONDS = {
  ('ours', 'vit'): [9.0, 2.0, 1.0, 3.0],
  ('ours', 'vit22b'): [9.0, 1.0, 1.0, 1.0],
  ('peer', 'vit'): [9.0, 4.0, 5.0, 3.0],
  ('peer', 'vit22b'): [9.0, 0.5, 0.5, 0.5],
}


def test_medians_without_warmup_and_ratios_of_peer_over_ours(monkeypatch):
  turns = []

  class Fake:
    parameters = 1

    def __init__(self, side, module, block, variant, batch_size, *threads):
      assert (variant, batch_size) == ('Ti', 7)
      assert module == {'ours': 'ours', 'peer': 'peers'}[side]
      assert len(threads) == (side == 'peer')
      self._key = side, block
      self._seconds = iter(SECONDS[self._key])

    def step(self):
      turns.append(self._key)
      return next(self._seconds)

    def close(self):
      assert next(self._seconds, None) is None

  monkeypatch.setattr(training_step, 'Runner', Fake)
  rows = training_step.measure('Ti', batch_size=7, warmup=1, repeats=3)
  keys = ('name', 'ours_ms', 'peer_ms', 'ratio')
  assert [tuple(row[key] for key in keys) for row in rows] == [
    ('vit Ti', 2000, 4000, 2),
    ('vit22b Ti', 1000, 500, 0.5),
    ('vit22b Ti', 1000, 2000, 2),
  ]
  assert set(turns) == set(SECONDS)
  assert turns == turns[:4] * 4  # one step each, in turn
  text = training_step.table(rows)
  assert '| vit Ti | 2,000 | timm ViT | 4,000 | 2.00 |' in text


@pytest.mark.slow
def test_overhead_is_measured_against_a_step_that_lacks_it():
  tasks = [
    overhead.make_task(kind, 'Ti', 16)
    for kind in (classification.Classification, overhead.Plain)
  ]
  states, scalars = [], []
  for task in tasks:
    batch = next(task.train_batches())
    with sharding.mesh_context(task.mesh):
      state, row = jax.eval_shape(task.step, task.abstract_state, batch)
    states.append(jax.tree.map(lambda x: (x.shape, x.dtype), state))
    scalars.append(row.shape)
  assert states[0] == states[1]
  assert scalars == [(len(tasks[0].scalars.all),), (1,)]


def test_a_translation_step_takes_turns_with_two_peers(monkeypatch):
  seconds = {
    (): [2.0],
    ('contiguous_format',): [3.0],
    ('channels_last',): [1.0],
  }

  class Fake:
    parameters = 1

    def __init__(self, side, module, batch_size, size, patch, *layout):
      assert (batch_size, size, patch) == (5, 64, 8)
      assert module == (
        'ours_translation' if side == 'ours' else 'peers_translation'
      )
      self._seconds = seconds[layout[:1]]

    def step(self):
      return self._seconds[0]

    def close(self):
      pass

  monkeypatch.setattr(training_step, 'Runner', Fake)
  rows = translation_step.measure(5, warmup=0, repeats=1)
  assert [(r['peer'], r['ratio']) for r in rows] == [
    ('PyTorch', 1.5),
    ('PyTorch, channels last', 0.5),
  ]
  assert all('batch 5' in r['name'] for r in rows)


@pytest.mark.slow
def test_translation_peer_is_of_the_same_size_and_steps():
  if importlib.util.find_spec('torch') is None:
    pytest.skip('torch is in the extra `peers`')
  import jax.numpy as jnp

  from experiments.throughput import peers_translation
  from vit22b_jax.models import generators, patchgan

  arguments = (2, 24, 4, 'contiguous_format', 1)
  step, theirs = peers_translation.training_step(*arguments)
  losses = [step() for _ in range(2)]
  assert np.isfinite(losses).all() and losses[0] != losses[1]
  generator = generators.build_vitunet(
    'released_vit', 'S', image_size=24, patch_size=4
  )
  total = 0
  image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
  for model in (generator, patchgan.build('patchgan70')):
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    total += 2 * sum(p.size for p in jax.tree.leaves(params))
  assert total == theirs


@pytest.mark.slow
@pytest.mark.parametrize('block', ['vit', 'vit22b'])
def test_peer_is_of_the_same_size_and_both_learn(block):
  for name in ('torch', 'timm'):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f'{name} is in the extra `peers`')
  from experiments.throughput import ours, peers

  step, theirs = peers.training_step(block, 'Ti', batch_size=8, threads=1)
  losses = [step() for _ in range(4)]
  assert losses[-1] < losses[0]
  step, count = ours.training_step(block, 'Ti', batch_size=8)
  losses = [step() for _ in range(4)]
  assert losses[-1] < losses[0]
  assert abs(count / theirs - 1) < 0.003  # biases, and norms of a block
