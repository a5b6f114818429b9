"""The benchmark: medians of alternating steps, and peers of the same size."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from experiments.throughput import overhead, training_step, translation_step
from vit22b_jax.models import vit
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification

# What stands beside our model of each block, and the seconds of a step.
PEERS = {
  ('ours', 'vit'): 1.0,
  ('peers', 'vit', False): 2.0,
  ('peers', 'vit', True): 1.5,
  ('peers_flax',): 1.25,
  ('ours', 'vit22b'): 2.0,
  ('peers', 'vit22b', False): 1.0,
  ('peers', 'vit22b', True): 4.0,
  ('ours', 'vit', False): 1.0,
  ('ours', 'vit', True): 2.0,
  ('ours', 'vit22b', False): 1.5,
}


@pytest.fixture
def fake(monkeypatch):
  """Replaces processes; their steps take what PEERS says. Returns the turns."""
  turns = []

  class Fake:
    parameters = 1

    def __init__(self, side, module, *arguments):
      self._key = module, *(a for a in arguments if type(a) in (str, bool))
      self._key = tuple(part for part in self._key if part != 'Ti')
      assert side == ('ours' if module == 'ours' else 'peer')
      # The warm-up, and three steps of which the median counts.
      self._seconds = iter([9.0, *(f * PEERS[self._key] for f in (1, 3, 0.5))])

    def step(self):
      turns.append(self._key)
      return next(self._seconds)

    def close(self):
      assert next(self._seconds, None) is None

  monkeypatch.setattr(training_step, 'Runner', Fake)
  return turns


def test_medians_without_warmup_and_ratios_of_peer_over_ours(fake, monkeypatch):
  monkeypatch.setattr(training_step.shutil, 'which', lambda _: '/usr/bin/g++')
  rows = training_step.measure('Ti', batch_size=7, warmup=1, repeats=3)
  parallel = training_step.PARALLEL
  assert [(r['name'], r['peer'], r['ratio']) for r in rows] == [
    ('vit Ti', 'timm ViT', 2),
    ('vit Ti', 'timm ViT, compiled', 1.5),
    ('vit Ti', 'plain Flax ViT', 1.25),
    ('vit22b Ti', parallel, 0.5),
    ('vit22b Ti', f'{parallel}, compiled', 2),
    ('vit22b Ti', 'our vit Ti', 0.5),
    ('vit22b Ti', 'our vit Ti with QK-norm', 1),
    ('vit22b Ti', 'our vit22b Ti without QK-norm', 0.75),
  ]
  assert fake[:16] == fake[:4] * 4  # one step each, in turn


def test_compiled_peers_need_a_compiler(fake, monkeypatch, capsys):
  monkeypatch.setattr(training_step.shutil, 'which', lambda _: None)
  rows = training_step.measure('Ti', batch_size=7, warmup=1, repeats=3)
  assert not [r for r in rows if 'compiled' in r['peer']]
  assert 'torch.compile needs g++' in capsys.readouterr().out


def test_rows_of_other_processors_stay(tmp_path):
  for cpu, ours in (('X', 2.0), ('Y', 4.0), ('X', 1.0)):
    facts = {'cpu': cpu, 'cores': 2}
    rows = [training_step.row('a', ours, 'b', 8.0)]
    rows += [training_step.row('c', 1.0, 'd', 1.0)] * (cpu == 'Y')
    # Measured once on X, and kept when other models are timed there.
    rows += [training_step.row('e', 1.0, 'f', 3.0)] * (ours == 2)
    training_step.write(tmp_path, 'results', rows, facts)
  found = json.loads((tmp_path / 'results.json').read_text())
  assert [list(f) for f in found.values()] == [['environment', 'rows']] * 2
  text = (tmp_path / 'results.md').read_text()
  assert (
    '| 2 cores of X: ours, ms | peer, ms | peer / ours | 2 cores of' in text
  )
  assert '| a | b | 1,000 | 8,000 | 8.00 | 4,000 | 8,000 | 2.00 |' in text
  assert '| c | d | - | - | - | 1,000 | 1,000 | 1.00 |' in text
  assert '| e | f | 1,000 | 3,000 | 3.00 | - | - | - |' in text


@pytest.mark.parametrize(
  'name', ['results', 'translation', 'inception', 'overhead']
)
def test_committed_tables_are_those_of_the_committed_rows(name):
  path = training_step.HERE / f'{name}.json'
  table = training_step.table(json.loads(path.read_text()))
  assert path.with_suffix('.md').read_text() == f'{table}\n'


@pytest.mark.parametrize(
  ('name', 'family', 'model', 'expected'),
  [
    ('AMD EPYC', 25, 1, 'AMD EPYC (Zen 3)'),
    ('AMD EPYC', 25, 17, 'AMD EPYC (Zen 4)'),
    ('AMD EPYC', 26, 2, 'AMD EPYC (Zen 5)'),
    ('Intel(R) Xeon(R)', 6, 143, 'Intel(R) Xeon(R)'),
  ],
)
def test_a_processor_is_named_with_its_generation(
  name, family, model, expected
):
  info = f'cpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\n'
  assert training_step.processor(info) == expected


def test_the_plain_flax_vit_has_timms_parameters():
  from experiments.throughput import peers_flax

  image = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
  params = jax.eval_shape(
    peers_flax.ViT(vit.VARIANTS['S']['width']).init, jax.random.key(0), image
  )
  assert sum(p.size for p in jax.tree.leaves(params)) == 21_342_346


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

  step, theirs = peers.training_step(block, 'Ti', 8, 1, compiled=False)
  losses = [step() for _ in range(4)]
  assert losses[-1] < losses[0]
  step, count = ours.training_step(block, 'Ti', batch_size=8)
  losses = [step() for _ in range(4)]
  assert losses[-1] < losses[0]
  assert abs(count / theirs - 1) < 0.003  # biases, and norms of a block
