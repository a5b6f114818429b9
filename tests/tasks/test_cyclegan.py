"""CycleGAN's step: what must not change its result, and what must."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from vit22b_jax import config as config_lib
from vit22b_jax import errors
from vit22b_jax.data import catalog, splits
from vit22b_jax.fid import extractor
from vit22b_jax.models import convolutions, patchgan
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import checkpoint, sharding
from vit22b_jax.tasks import (
  cyclegan,
  cyclegan_update,
  evaluators,
  fid_evaluator,
)
from vit22b_jax.training import losses
from vit22b_jax.weights import initial

SIZE = 16
FOUR = set(cyclegan_update.NETWORKS)


def _mesh(data=1, fsdp=1):
  devices = jax.devices()[: data * fsdp]
  return sharding.make_mesh(data=data, fsdp=fsdp, devices=devices)


def small_config(**overrides):
  """The smallest networks there are: programs compile in seconds."""
  config = common.finish(common.translation(), 'resnet,tiny')
  config.update_from_flattened_dict(
    {
      'data.image_size': SIZE,
      'data.load_size': SIZE,
      'data.flip': False,
      'discriminator.name': 'released',
      'optim.pool_size': 3,
      'optim.schedule': 'constant',
      **overrides,
    }
  )
  return config


class Network(nn.Module):
  """Two convolutions: a step knows nothing of what it trains."""

  width: int
  features: int
  dtype: str

  @nn.compact
  def __call__(self, x, train=False):
    conv = functools.partial(
      convolutions.Conv,
      kernel_size=3,
      pad=1,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.2),
    )
    x = nn.leaky_relu(conv(features=self.width, name='conv_0')(x))
    x = conv(features=self.features, name='conv_1')(x).astype(jnp.float32)
    return jnp.tanh(x) if self.features == 3 else x


def small_networks(config):
  width, dtype = config.model.width, config.model.dtype
  return cyclegan_update.Networks(
    Network(width, 3, dtype), Network(width, 1, dtype), **config.loss
  )


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)

  def pair(a, b):
    # Domain a is dark, b bright.
    return catalog.Pair(
      splits.ArraySplit(rng.integers(0, 128, (a, SIZE, SIZE, 3), np.uint8)),
      splits.ArraySplit(rng.integers(128, 256, (b, SIZE, SIZE, 3), np.uint8)),
    )

  return catalog.Dataset(pair(17, 13), pair(3, 5), None, ('dark', 'bright'))


@pytest.fixture(scope='module')
def task_of(data):
  """Tasks by overrides: those that several tests use compile once."""
  known = {}

  def get(mesh=None, **overrides):
    name = (mesh, *sorted(overrides.items()))
    if name not in known:
      config = small_config(**overrides)
      cyclegan.CycleGAN.validate_config(config)
      with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cyclegan_update, 'build_networks', small_networks)
        known[name] = cyclegan.CycleGAN(
          config, mesh or _mesh(), ['dark', 'bright'], data
        )
    return known[name]

  return get


def _steps(task, count, state=None, skip=0):
  """The state after `count` steps from batch `skip` on, and their scalars."""
  state, batches = state or task.init_state(), task.train_batches()
  batches.set_state({**batches.get_state(), 'next_index': skip})
  rows = []
  for _ in range(count):
    with sharding.mesh_context(task.mesh):
      state, scalars = task.train_step(state, next(batches))
    row = np.asarray(scalars).tolist()
    rows.append(dict(zip(task.scalars.all, row, strict=True)))
  batches.close()
  return state, rows


def _close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def _moved(before, after):
  """How far each network's weights moved, by name."""
  difference = jax.tree.map(lambda a, b: np.asarray(a) - b, before, after)
  return {name: float(optax.tree.norm(x)) for name, x in difference.items()}


def test_networks_start_from_different_weights_and_the_seed_decides(task_of):
  first = jax.device_get(task_of().init_state().params)
  assert set(first) == FOUR
  for one, other in (('gen_ab', 'gen_ba'), ('disc_a', 'disc_b')):
    pairs = jax.tree.map(lambda x, y: (x, y), first[one], first[other])
    leaves = jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple))
    assert all(x.std() == 0 or (x != y).all() for x, y in leaves)
  _close(first, task_of().init_state().params, rtol=0)
  other = task_of(seed=1).init_state().params
  assert all(distance > 0.1 for distance in _moved(first, other).values())


def _by_hand(task, state, batch, order):
  """One step as CycleGAN's code has it: pass by pass, with nothing shared."""
  networks = task.networks
  factor = networks.discriminator_factor
  a, b = (jnp.asarray(batch[k], jnp.float32) / 127.5 - 1 for k in 'ab')
  params = jax.tree.map(jnp.copy, state.params)
  tx = optax.adam(task.config.optim.learning_rate, b1=0.5, b2=0.999)

  def gen(params, name, x):
    return networks.generator.apply({'params': params[name]}, x)

  def disc(params, name, x):
    return networks.discriminator.apply({'params': params[name]}, x)

  def gen_loss(gens, discs):
    fake_b, fake_a = gen(gens, 'gen_ab', a), gen(gens, 'gen_ba', b)
    loss = jnp.mean((disc(discs, 'disc_b', fake_b) - 1) ** 2)
    loss += jnp.mean((disc(discs, 'disc_a', fake_a) - 1) ** 2)
    loss += 10 * losses.l1(gen(gens, 'gen_ba', fake_b), a)
    loss += 10 * losses.l1(gen(gens, 'gen_ab', fake_a), b)
    if networks.lambda_identity:
      loss += 5 * losses.l1(gen(gens, 'gen_ba', a), a)
      loss += 5 * losses.l1(gen(gens, 'gen_ab', b), b)
    return loss

  fakes = {
    'disc_b': (b, gen(params, 'gen_ab', a)),
    'disc_a': (a, gen(params, 'gen_ba', b)),
  }

  def disc_loss(discs):
    loss = 0.0
    for name, (real, fake) in fakes.items():
      loss += jnp.mean((disc(discs, name, real) - 1) ** 2)
      loss += jnp.mean(disc(discs, name, fake) ** 2)
    return factor * loss

  total = 0.0
  for group in order:
    names = getattr(cyclegan_update, group.upper())
    mine = {name: params[name] for name in names}
    others = {k: v for k, v in params.items() if k not in names}
    if group == 'generators':
      loss, grads = jax.value_and_grad(gen_loss)(mine, others)
    else:
      loss, grads = jax.value_and_grad(disc_loss)(mine)
    updates, _ = tx.update(grads, tx.init(mine))
    params |= optax.apply_updates(mine, updates)
    total += loss
  return total, params


CYCLEGAN = {}  # the defaults
RELEASED = {
  'optim.update_order': 'discriminators',
  'loss.lambda_identity': 0.0,
  'loss.discriminator_factor': 1.0,
}


@pytest.mark.parametrize(
  'overrides', [CYCLEGAN, pytest.param(RELEASED, marks=pytest.mark.slow)]
)
def test_a_step_equals_one_written_out(task_of, overrides):
  """The pool is still filling up, so what it shows is what comes."""
  task = task_of(**overrides)
  order = ['generators', 'discriminators']
  order = order[::-1] if overrides else order
  before = jax.device_get(task.init_state())
  batch = jax.device_get(next(task.train_batches()))
  loss, params = jax.jit(
    lambda state, batch: _by_hand(task, state, batch, order)
  )(before, batch)
  after, rows = _steps(task, 1)
  np.testing.assert_allclose(rows[0]['loss'], loss, rtol=1e-5)
  # Adam's first step is the sign of a gradient: rounding decides it where the
  # gradient is zero, as those of biases before an instance norm are.
  rate = task.config.optim.learning_rate
  leaves = zip(*map(jax.tree.leaves, (after.params, params)), strict=True)
  for got, expected in leaves:
    if got.ndim > 1:
      wrong = np.abs(got - expected) > 0.01 * rate
      assert wrong.mean() < 0.01
  assert ('train/idt_a' in rows[0]) == (not overrides)


def test_the_paired_term_compares_translations_with_the_other_image():
  overrides = {'loss.lambda_paired': 100.0, 'model.dtype': 'float32'}
  networks = small_networks(small_config(**overrides))
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (6, 2, 8, 8, 3)).astype(np.float32)
  made = dict(zip(('fake_a', 'fake_b', 'rec_a', 'rec_b'), x, strict=False))
  made |= {'idt_a': x[4], 'idt_b': x[5]}
  real = {'a': x[5], 'b': x[4]}
  disc = networks.discriminator.init(jax.random.key(0), x[0])['params']
  discs = dict.fromkeys(cyclegan_update.DISCRIMINATORS, disc)
  loss, terms = networks.generator_loss(made, discs, real)
  for domain in 'ab':
    expected = np.abs(made[f'fake_{domain}'] - real[domain]).mean()
    np.testing.assert_allclose(terms[f'paired_{domain}'], expected, rtol=1e-6)
  without = dataclasses.replace(networks, lambda_paired=0.0)
  rest, others = without.generator_loss(made, discs, real)
  assert set(terms) - set(others) == {'paired_a', 'paired_b'}
  pairs = terms['paired_a'] + terms['paired_b']
  np.testing.assert_allclose(loss, rest + 100 * pairs, rtol=1e-6)
  assert set(without.terms) | {'paired_a', 'paired_b'} == set(networks.terms)


class Same(nn.Module):
  """Changes nothing."""

  @nn.compact
  def __call__(self, x, train=False):
    return x * self.param('scale', nn.initializers.ones, ())


@pytest.mark.parametrize('pairing', ['paired', 'index'])
def test_the_images_of_a_pair_are_cut_and_mirrored_alike(data, pairing):
  config = small_config(
    **{'data.load_size': SIZE + 9, 'data.flip': True, 'optim.pool_size': 0}
  )
  config.data.pairing = pairing
  task = cyclegan.CycleGAN(config, _mesh(), ['dark', 'bright'], data)
  task.networks = cyclegan_update.Networks(
    Same(), Same(), **(config.loss.to_dict() | {'lambda_paired': 1.0})
  )
  params = {name: {'scale': jnp.ones(())} for name in FOUR}
  shape = (2, SIZE + 9, SIZE + 9, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  state = task.abstract_state.replace(
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key_data(jax.random.key(0)),
    params=params,
    opt_state={
      group: task.tx.init(cyclegan_update.pick(params, names))
      for group, names in cyclegan._GROUPS.items()
    },
  )
  done = jax.jit(lambda batch: task._update(state, batch))(
    {'a': images, 'b': images}
  )
  apart = done.seen['paired_a'] + done.seen['paired_b']
  assert apart < 1e-5 if pairing == 'paired' else apart > 0.1


def test_every_network_learns_and_every_weight_gets_a_gradient(task_of):
  task = task_of()
  before = jax.device_get(task.init_state().params)
  state, rows = _steps(task, 2)
  assert all(distance > 0 for distance in _moved(before, state.params).values())
  for name in cyclegan_update.NETWORKS:
    assert rows[0][f'grad_norm/{name}'] > 0
  # Adam moves whatever has a gradient.
  moved = jax.tree.map(lambda x, y: (x != y).any(), before, state.params)
  assert all(jax.tree.leaves(moved))
  total = np.sqrt(sum(rows[1][f'grad_norm/{n}'] ** 2 for n in FOUR))
  np.testing.assert_allclose(rows[1]['grad_norm'], total, rtol=1e-5)
  assert rows[1]['clipped_grad_norm'] == pytest.approx(rows[1]['grad_norm'])
  weights = {'gan': 1, 'cycle': 10, 'idt': 5, 'disc': 0.5}
  parts = [
    weights[name.removeprefix('train/').split('_')[0]] * rows[1][name]
    for name in task.scalars.logged
  ]
  np.testing.assert_allclose(rows[1]['loss'], sum(parts), rtol=1e-5)


def test_resumed_equals_uninterrupted_bit_for_bit(task_of, tmp_path):
  """Pools included: by step 4 they are full, and images are exchanged."""
  task = task_of()
  whole, rows = _steps(task, 6)
  state, first = _steps(task, 3)
  manager = checkpoint.Manager(tmp_path, scores={})
  manager.save(3, state.to_dict(), meta={})
  manager.wait()
  found = manager.restore(task.abstract_state.to_dict())
  weights = manager.restore(task.abstract_weights).state
  manager.close()
  for x, y in zip(
    *map(jax.tree.leaves, (state.to_dict(), found.state)), strict=True
  ):
    np.testing.assert_array_equal(x, y)
  variables, kind = task.variables(weights)
  assert kind == 'params'
  assert set(variables) == set(cyclegan_update.GENERATORS)
  _close(variables, task.variables(state.to_dict())[0], rtol=0)
  resumed, rest = _steps(
    task, 3, task.abstract_state.replace(**found.state), skip=3
  )
  assert first + rest == rows
  jax.tree.map(
    np.testing.assert_array_equal, whole.to_dict(), resumed.to_dict()
  )
  assert whole.pools['a'].count == 3


def test_starts_from_the_networks_of_another_run(
  task_of, tmp_path, monkeypatch
):
  task = task_of()
  there, _ = _steps(task, 2)
  manager = checkpoint.Manager(tmp_path, scores={})
  manager.save(2, there.to_dict(), meta={})
  manager.wait()
  manager.close()
  there = jax.device_get(there.params)
  text = config_lib.to_json(task.config)
  (tmp_path / 'config.json').write_text(text)
  monkeypatch.setenv('HOME', str(tmp_path))
  other = task_of(seed=1, init_from='~')
  state = other.with_pretrained(other.init_state(), '~')
  jax.tree.map(np.testing.assert_array_equal, there, state.params)
  assert state.step == 0
  assert not any(x.any() for x in jax.tree.leaves(state.opt_state))
  wider = task_of(**{'model.width': 8})
  with pytest.raises(errors.UserError, match='has other networks than this'):
    wider.with_pretrained(wider.abstract_state, str(tmp_path))
  (tmp_path / 'none').mkdir()
  with pytest.raises(errors.UserError, match='workdir of another translation'):
    task.with_pretrained(task.abstract_state, str(tmp_path / 'none'))
  (tmp_path / 'none' / 'config.json').write_text(text)
  with pytest.raises(errors.UserError, match='has no checkpoint'):
    task.with_pretrained(task.abstract_state, str(tmp_path / 'none'))


@pytest.mark.parametrize(
  ('shape', 'batch_size', 'used'),
  [
    ((8, 1), 1, 1),
    ((3, 1), 8, 2),
    ((4, 1), 8, 4),
    ((3, 2), 4, 2),
    ((2, 2), 3, None),
  ],
)
def test_as_many_devices_as_share_a_batch(
  shape, batch_size, used, data, capsys
):
  def make():
    config = small_config(**{'eval.batch_size': 8})
    config.batch_size = batch_size
    mesh = _mesh(*shape)
    return cyclegan.CycleGAN(config, mesh, ['a', 'b'], data)

  if used is None:
    with pytest.raises(errors.UserError, match='batch_size=3'):
      make()
    return
  task = make()
  assert dict(task.mesh.shape) == {'data': used, 'fsdp': shape[1], 'tensor': 1}
  said = capsys.readouterr().out
  assert ('devices are used' in said) == (used < shape[0])


def test_the_two_optimizers_clip_apart():
  grads = {name: jnp.zeros(3) for name in cyclegan_update.NETWORKS}
  grads['gen_ab'], grads['disc_a'] = jnp.array([3.0, 0, 4]), jnp.array([1.5])
  norm = cyclegan_update.clipped_norm(grads, 2.0)
  np.testing.assert_allclose(norm, np.hypot(2, 1.5), rtol=1e-6)
  updates = {}
  for group in ('generators', 'discriminators'):
    mine = {k: grads[k] for k in getattr(cyclegan_update, group.upper())}
    clip = optax.clip_by_global_norm(2.0)
    updates |= clip.update(mine, clip.init(mine))[0]
  np.testing.assert_allclose(norm, optax.tree.norm(updates), rtol=1e-6)


def test_pools_show_earlier_fakes(task_of):
  state, _ = _steps(task_of(), 6)
  for pool in state.pools.values():
    images = np.asarray(pool.images)
    assert (np.abs(images) <= 1).all()
    assert (images.std(axis=(1, 2, 3)) > 0).all()
  # From other earlier fakes the discriminators learn something else.
  state = jax.device_get(state)
  flat = {k: p.replace(images=0 * p.images) for k, p in state.pools.items()}
  shown, other = (
    _steps(task_of(), 4, jax.tree.map(jnp.array, s), skip=6)[0]
    for s in (state, state.replace(pools=flat))
  )
  moved = _moved(jax.device_get(shown.params), other.params)
  assert min(moved[name] for name in cyclegan_update.DISCRIMINATORS) > 1e-5, (
    moved
  )
  assert min(moved.values()) > 0


def test_without_pools_there_are_none(task_of):
  task = task_of(**{'optim.pool_size': 0})
  assert task.abstract_state.pools == {'a': None, 'b': None}


@pytest.mark.slow
def test_sharded_equals_one_device(task_of):
  """The batch over 8 devices, the parameters over 2 of them."""
  # Adam's own steps go by a gradient's sign, which rounding decides at zero;
  # and large ones would meet the kinks of the losses.
  overrides = {
    'batch_size': 8,
    'optim.pool_size': 11,
    'optim.eps': 1.0,
    'optim.learning_rate': 1e-4,
  }
  one, rows = _steps(task_of(**overrides), 5)
  many, other = _steps(task_of(_mesh(4, 2), **overrides), 5)
  for name in ('loss', 'grad_norm', 'max_logit', 'train/disc_a'):
    np.testing.assert_allclose(
      [row[name] for row in rows], [row[name] for row in other], rtol=1e-5
    )
  whole = jax.device_get(one.params)
  for name, distance in _moved(whole, many.params).items():
    assert distance < 1e-5 * optax.tree.norm(whole[name])
  _close(one.pools, many.pools, atol=1e-4)


@pytest.mark.slow
def test_float16_scales_the_loss_and_survives_an_overflow(task_of):
  task = task_of(**RELEASED, **{'model.dtype': 'float16'})
  state = task.init_state()
  assert state.loss_scale.scale == 2.0**16
  huge = state.loss_scale.replace(scale=jnp.float32(2.0**60))
  before = jax.device_get(state.params)
  state, rows = _steps(task, 1, state.replace(loss_scale=huge))
  assert rows[0]['verdict/keep'] == 1
  assert rows[0]['verdict/finite'] == 1
  assert state.loss_scale.scale == 2.0**59
  assert not any(_moved(before, state.params).values())
  calm = state.loss_scale.replace(scale=jnp.float32(2.0**10))
  state, rows = _steps(task, 1, state.replace(loss_scale=calm))
  assert rows[0]['verdict/keep'] == 0
  assert all(_moved(before, state.params).values())
  assert state.loss_scale.fin_steps == 1
  _, expected = _steps(task_of(**RELEASED), 1)
  np.testing.assert_allclose(rows[0]['loss'], expected[0]['loss'], rtol=5e-3)


def test_a_step_that_is_not_finite_is_not_taken_and_located(task_of):
  task = task_of()
  state, batches = task.init_state(), task.train_batches()
  params = jax.tree.map(jnp.copy, state.params)
  params['gen_ba'] = jax.tree.map(lambda x: x * jnp.nan, params['gen_ba'])
  state, batch = state.replace(params=params), next(batches)
  assert task.locate_nonfinite(state, batch).startswith('fake_a')
  before = jax.device_get(state.params['gen_ab'])
  with sharding.mesh_context(task.mesh):
    state, scalars = task.train_step(state, batch)
  row = dict(zip(task.scalars.all, scalars.tolist(), strict=True))
  assert row['verdict/stopped'] == 1
  assert state.step == 0
  _close(before, state.params['gen_ab'], rtol=0)


def test_translations_are_images_of_the_same_size(task_of):
  task = task_of()
  variables, _ = task.variables(task.init_state().to_dict())
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 12, 3), np.uint8)
  made = task.translate(variables, images, 'a2b')
  assert made.shape == images.shape
  assert made.dtype == np.uint8
  back = task.translate(variables, images, 'b2a')
  assert (np.asarray(made) != back).any()
  x = jnp.asarray(images, jnp.float32) / 127.5 - 1
  expected = task.model.apply({'params': variables['gen_ab']}, x)
  got = np.asarray(made) / 127.5 - 1
  np.testing.assert_allclose(got, expected, atol=1.01 / 255)


class Folder:
  """A workdir that remembers names."""

  def __init__(self):
    self.files = []

  def write_bytes(self, name, content):
    self.files.append(name)

  def image(self, name, step, image):
    assert image.shape == (3 * SIZE + 4, 2 * SIZE + 2, 3)


def test_samples_of_both_directions_are_written(task_of):
  run = Folder()
  task_of().sample(task_of().init_state(), run)
  assert run.files == [f'samples/{d}_00000000.png' for d in ('a2b', 'b2a')]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*images for 64 features')
def test_distances_count_what_entered_them_and_look_up_real_images(
  task_of, monkeypatch, tmp_path
):
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path))
  looked_at = []
  original = evaluators.Evaluator.batches

  def batches(self, split):
    looked_at.append(split)
    return original(self, split)

  monkeypatch.setattr(evaluators.Evaluator, 'batches', batches)

  def measured(task):
    found = fid_evaluator.FidEvaluator(
      task.config,
      task.mesh,
      task.data,
      lambda _, images, __: 255 - images,
      dict,
    )
    return found.distances({}, 'val')

  first = measured(task_of())
  assert (first['num_a'], first['num_b']) == (3, 5)
  assert len(looked_at) == 4  # real and made of both
  assert measured(task_of()) == first  # as a resumed run
  assert len(looked_at) == 6
  least = measured(task_of(**{'fid.num': 'min'}))
  assert (least['num_a'], least['num_b']) == (3, 3)
  assert len(looked_at) == 8
  measured(task_of(**{'fid.resize': 'tf1'}))
  assert len(looked_at) == 12  # another mode


@pytest.mark.parametrize(('data_ways', 'fsdp'), [(3, 1), (2, 2)])
def test_any_number_of_devices_shares_an_evaluation(data, data_ways, fsdp):
  mesh = _mesh(data_ways, fsdp)
  found = fid_evaluator.FidEvaluator(
    small_config(**{'eval.batch_size': 2}),
    mesh,
    data,
    lambda _, images, __: images,
    dict,
  )
  assert found.batch_size == data_ways * fsdp
  made = list(found.made({}, 'b2a', 'val'))
  images = np.concatenate([batch['image'] for batch in made])
  mask = np.concatenate([batch['mask'] for batch in made])
  np.testing.assert_array_equal(images[mask > 0], data.val.b.images)


def test_translations_of_pairs_are_compared_with_the_other_image(data):
  """Each image counts once, whatever the padding of the last batch."""
  real = {domain: getattr(data.train, domain) for domain in 'ab'}
  pairs = catalog.Pair(*(real[d].subset(np.arange(11)) for d in 'ab'))
  evaluator = fid_evaluator.FidEvaluator(
    small_config(
      **{'eval.batch_size': 4, 'eval.fid': False, 'data.pairing': 'paired'}
    ),
    _mesh(),
    catalog.Dataset(pairs, pairs, pairs, ('dark', 'bright')),
    lambda _, images, direction: (
      255.0 - images if direction == 'a2b' else 0.0 * images
    ),
    dict,
  )
  found = evaluator.test({}, Folder())
  a, b = (x.gather(np.arange(11))['image'] * 1.0 for x in (pairs.a, pairs.b))
  expected = {
    'a2b': np.abs(255 - a - b).mean() / 127.5,
    'b2a': a.mean() / 127.5,
  }
  for direction, value in expected.items():
    assert found[f'paired_l1_{direction}'] == pytest.approx(value, rel=1e-5)
  mean = np.mean(list(expected.values()))
  assert found['paired_l1'] == pytest.approx(mean, rel=1e-5)
  text = evaluator.summary(found)
  assert 'not computed' in text
  assert f'a2b {expected["a2b"]:.4g}' in text


@pytest.mark.filterwarnings('ignore:.*images for 64 features')
def test_validation_measures_both_directions(task_of, data):
  task = task_of()
  variables, _ = task.variables(task.init_state().to_dict())
  values = task.evaluator.validate(variables)
  # Inception computes no padding beside that of the batches.
  assert task.evaluator._extractor.batch_size == task.evaluator.batch_size
  # Three images of domain a are too few to rank checkpoints by.
  assert values.pop('num_images') == 3
  row = {'val/fid': 1.0, 'val/num_images': 3}
  assert evaluate.score(task.evaluator, row) is None
  assert set(values) == {
    f'{name}{end}' for name in ('fid', 'kid') for end in ('', '_a2b', '_b2a')
  }
  mean = (values['fid_a2b'] + values['fid_b2a']) / 2
  np.testing.assert_allclose(values['fid'], mean)
  result = task.evaluator.test(variables, Folder())
  assert (result['split'], result['num_a'], result['num_b']) == ('val', 3, 5)
  assert 'identity_num_a' not in result
  for name, value in values.items():
    np.testing.assert_allclose(result[name], value, rtol=1e-6)
    # The weights are those that the run starts from.
    np.testing.assert_allclose(result[f'untrained_{name}'], value, rtol=1e-6)
  np.testing.assert_allclose(
    result['identity_fid_a2b'], result['identity_fid_b2a'], rtol=1e-5
  )
  text = task.evaluator.summary({**result, 'step': 0})
  assert 'uncalibrated' in text
  assert 'a2b' in text


def _no_weights(monkeypatch):
  def fail(*_, **__):
    raise errors.UserError('No network.')

  monkeypatch.setattr(extractor.Extractor, '__init__', fail)


@pytest.mark.parametrize(
  'overrides', [{'eval.fid': False}, {'fid.weights': ''}]
)
def test_without_distances_the_rest_goes_on(
  data, overrides, monkeypatch, caplog
):
  _no_weights(monkeypatch)
  config = small_config(**overrides)
  task = cyclegan.CycleGAN(config, _mesh(), ['dark', 'bright'], data)
  task.evaluator.prepare()
  assert ('No network' in caplog.text) == ('fid.weights' in overrides)
  assert task.evaluator.missing
  result = task.evaluator.test({}, Folder())
  assert (result['split'], result['num_a'], result['num_b']) == ('val', 3, 5)
  assert 'not computed' in task.evaluator.summary(result)


def test_weights_that_were_named_must_be_there(data, monkeypatch):
  _no_weights(monkeypatch)
  config = small_config(**{'fid.weights': 'random:0'})
  task = cyclegan.CycleGAN(config, _mesh(), ['dark', 'bright'], data)
  with pytest.raises(errors.UserError, match='No network'):
    task.evaluator.prepare()


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('loss.gan', 'hinge', r"loss\.gan='hinge'"),
    ('optim.update_order', 'both', r"optim\.update_order='both'"),
    ('discriminator.name', 'x', r"discriminator\.name='x'"),
    ('model.generator', 'x', r"model\.generator='x'"),
    ('loss.gan', 'vanilla', 'probabilities'),
    ('data.image_size', 18, 'multiple of 4'),
    ('discriminator.name', 'patchgan70', 'of 24 pixels at least'),
    ('loss.lambda_paired', 100.0, r"set data\.pairing='paired'"),
  ],
)
def test_what_does_not_fit_is_refused_before_data_are_read(key, value, message):
  config = small_config(**{key: value})
  with pytest.raises(errors.UserError, match=message):
    config_lib.validate_config(config)
    cyclegan.CycleGAN.validate_config(config)


def test_stopping_early_needs_what_it_goes_by():
  config = small_config(**{'eval.early_stop': 3, 'eval.fid': False})
  with pytest.raises(errors.UserError, match=r'eval\.fid=False leaves it out'):
    cyclegan.CycleGAN.validate_config(config)


def test_a_start_that_is_no_translation_is_refused_before_data_are_read():
  with pytest.raises(errors.UserError, match='workdir of another translation'):
    initial.validate('x.npz', 'translation')


@pytest.mark.parametrize(
  ('dtype', 'used'), [('auto', 'float32'), ('bfloat16', 'bfloat16')]
)
def test_discriminators_are_those_of_patchgan(dtype, used):
  config = small_config(**{'model.dtype': dtype})
  found = cyclegan_update.build_networks(config).discriminator
  assert found == patchgan.build('released', dtype=used, precision='default')
