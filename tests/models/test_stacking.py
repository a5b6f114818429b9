"""Stacked blocks: the same function, gradients, checkpoints and weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from vit22b_jax import errors
from vit22b_jax.models import remat as remat_lib
from vit22b_jax.models import stacking, vit
from vit22b_jax.runtime import checkpoint, sharding
from vit22b_jax.training import diagnostics
from vit22b_jax.weights import pretrained
from vit22b_jax.weights import timm as timm_format

DEPTH = 2
X = jax.random.normal(jax.random.key(0), (4, 8, 12, 3))


def build(block='vit22b', **overrides):
  fields = {'depth': DEPTH, 'width': 12, 'num_heads': 2, 'mlp_dim': 10}
  fields |= {'patch_size': 4, 'num_classes': 5, 'init': 'torch'}
  return vit.build(block, 'Ti', **fields | overrides)


def init(model):
  """Parameters about as large as initial ones, with nothing compiled."""
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), X))['params']
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes
  )


def assert_close(actual, expected, tolerance=1e-6):
  """max|a - b| / max|b| of every leaf."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def value_and_gradients(model, params, train, capture=True):
  """Gradients of a scalar of the logits, and what was captured."""

  @jax.jit
  def run(params):
    def loss(params):
      out = model.apply(
        {'params': params},
        X,
        train=train,
        capture=capture,
        rngs={'dropout': jax.random.key(2)},
      )
      logits, seen = out if capture else (out, {})
      return jnp.sum(jnp.sin(logits + jnp.arange(5))), seen

    return jax.value_and_grad(loss, has_aux=True)(params)

  return run(params)


def test_trees_of_any_kind_there_and_back():
  params = init(build(depth=11))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  moments = jax.eval_shape(tx.init, params)
  moments = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), moments)
  tree = {'params': params, 'ema': None, 'opt_state': moments}
  stacked = stacking.stack(tree, 11)
  kernel = stacked['params']['blocks']['in_proj']['kernel']
  assert_equal(kernel[10], params['block_10']['in_proj']['kernel'])
  assert 'block_00' not in stacked['params']
  assert_equal(stacking.unstack(stacked), tree)
  names = stacking.paths(tree)
  assert_equal(stacking.like(stacked, names), tree)
  assert_equal(stacking.like(tree, stacking.paths(stacked)), stacked)
  assert stacking.like(tree, names) is tree


def test_shapes_keep_their_shardings():
  mesh = sharding.make_mesh(fsdp=2)
  placed = NamedSharding(mesh, PartitionSpec('fsdp', None, 'tensor'))
  leaf = jax.ShapeDtypeStruct((4, 3, 2), jnp.float32, sharding=placed)
  tree = {name: {'kernel': leaf} for name in stacking.layer_names(2)}
  stacked = stacking.stack(tree, 2)
  found = stacked['blocks']['kernel']
  assert found.shape == (2, 4, 3, 2)
  assert tuple(found.sharding.spec) == (None, 'fsdp', None, 'tensor')
  assert stacking.unstack(stacked) == tree


def test_scanned_parameters_are_placed_as_unrolled_ones():
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  placed = []
  for scan in (False, True):
    model = build(scan_layers=scan)
    boxed = jax.eval_shape(model.init, jax.random.key(0), X)['params']
    specs = sharding.param_shardings(boxed, mesh)
    placed.append(
      jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        nn.unbox(boxed),
        specs,
      )
    )
  assert stacking.stack(placed[0], DEPTH) == placed[1]


def test_scanned_blocks_are_the_same_function():
  model = build('vit22b')
  params = init(model)
  expected = value_and_gradients(model, params, train=False)
  model = model.clone(scan_layers=True)
  stacked = stacking.stack(params, DEPTH)
  shapes = jax.tree.map(jnp.shape, init(model))
  assert shapes == jax.tree.map(jnp.shape, stacked)
  (loss, seen), grads = value_and_gradients(model, stacked, train=False)
  assert seen['attn_map'].shape[0] == DEPTH
  assert_close(((loss, seen), stacking.unstack(grads)), expected)
  norms = diagnostics.layer_norms(grads)
  expected = diagnostics.layer_norms(expected[1])
  assert list(norms) == ['grad_norm/00', 'grad_norm/01']
  assert_close(norms, expected)


def test_scanned_blocks_start_apart():
  params = jax.jit(build(scan_layers=True).init)(jax.random.key(1), X)
  kernel = nn.unbox(params)['params']['blocks']['in_proj']['kernel']
  assert np.abs(np.diff(kernel, axis=0)).mean() > 0.1 * np.abs(kernel).mean()


@pytest.mark.parametrize(
  ('block', 'scan'),
  [
    ('vit22b', False),
    pytest.param('vit22b', True, marks=pytest.mark.slow),
    pytest.param('vit', False, marks=pytest.mark.slow),
    pytest.param('vit', True, marks=pytest.mark.slow),
    pytest.param('vit22b_mlp_norm', False, marks=pytest.mark.slow),
  ],
)
def test_gradients_of_all_remat_policies_are_equal(block, scan):
  fields = {'dropout': 0.1, 'stochastic_depth': 0.2, 'depth': 2 if scan else 1}
  model = build(block, scan_layers=scan, **fields)
  params = init(model)
  expected = value_and_gradients(model, params, train=True, capture=False)
  for remat in remat_lib.REMAT:
    if remat != 'none':
      found = model.clone(remat=remat)
      found = value_and_gradients(found, params, train=True, capture=False)
      assert_close(found, expected, 2e-6)


def test_policies_compute_again_what_they_say():
  """Products of one block's backward pass, beyond those of 'none'."""
  model = build(depth=1)
  params = init(model)

  def products(remat):
    def loss(params):
      return model.clone(remat=remat).apply({'params': params}, X).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
    return str(jaxpr).count(' dot_general[')

  more = {
    remat: products(remat) - products('none') for remat in remat_lib.REMAT
  }
  # q, k and v; with them q k' and the sum of values; with the MLP's input.
  assert more['none'] == 0 and more['projections'] == 2
  assert more['hidden'] == 3 and more['full'] == 4


@pytest.mark.parametrize(
  ('block', 'remat', 'kept'),
  [
    ('vit22b', 'projections', 'q k v hidden'),
    ('vit22b', 'hidden', 'hidden'),
    ('vit22b_mlp_norm', 'hidden', 'hidden tokens'),  # the norm's input
    ('vit', 'hidden', 'hidden tokens'),  # the stream between the two branches
    ('vit', 'full', ''),
  ],
)
def test_scanned_blocks_keep_what_the_policy_says(block, remat, kept):
  model = build(block, pool='mean', remat=remat, scan_layers=True)
  params = init(model)

  def loss(params):
    return model.apply({'params': params}, X).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
  forward = next(e for e in jaxpr.eqns if e.primitive.name == 'scan')
  stream, *found = [v.aval.shape for v in forward.outvars]
  heads, width = (DEPTH, 4, 2, 6, 6), (DEPTH, *stream)
  hidden = (*stream[:2], 2, 5) if block.startswith('vit22b') else (4, 6, 10)
  shapes = {'q': heads, 'k': heads, 'v': heads, 'tokens': width}
  shapes['hidden'] = (DEPTH, *hidden)
  # The stream between blocks is always kept.
  assert sorted(found) == sorted([width, *map(shapes.get, kept.split())])


def test_unknown_policies_are_refused():
  with pytest.raises(errors.UserError, match=r'Did you mean .*projections'):
    build(remat='projection')


@pytest.mark.parametrize('scan', [False, True])
def test_stochastic_depth_drops_later_blocks_more(scan):
  """Shares of equal images that lost the same branches."""
  fields = {'stochastic_depth': 0.6, 'depth': 3, 'pool': 'mean'}
  model = build('vit22b', scan_layers=scan, **fields)
  images = jnp.broadcast_to(X[:1], (1024, *X.shape[1:]))
  apply = jax.jit(functools.partial(model.apply, train=True))
  rngs = {'dropout': jax.random.key(3)}
  logits = np.asarray(apply({'params': init(model)}, images, rngs=rngs))
  # Block 0 always stays, 1 with a chance of 0.7, 2 of 0.4: four outcomes.
  _, counts = np.unique(logits[:, 0].round(4), return_counts=True)
  shares = np.sort(counts / len(images))
  np.testing.assert_allclose(shares, [0.12, 0.18, 0.28, 0.42], atol=0.05)


def test_a_frozen_backbone_s_state_there_and_back():
  """It has no moments of blocks."""
  params = {f'block_{i:02}': {'bias': np.full(3, i)} for i in range(DEPTH)}
  params['head'] = {'bias': np.zeros(2)}
  labels = {k: 'yes' if k == 'head' else 'no' for k in params}
  labels['blocks'] = 'no'
  kinds = {'yes': optax.scale_by_adam(), 'no': optax.set_to_zero()}
  tx = optax.partition(kinds, lambda tree: {k: labels[k] for k in tree})

  def state(params):
    return {'opt_state': tx.init(params), 'params': params}

  apart, stacked = state(params), state(stacking.stack(params, DEPTH))
  for tree, other in ((apart, stacked), (stacked, apart)):
    found = stacking.like(tree, stacking.paths(other))
    assert jax.tree.structure(found) == jax.tree.structure(other)


@pytest.mark.slow
@pytest.mark.parametrize('scan', [True, False])
def test_checkpoints_restore_into_the_other_layout(scan, tmp_path):
  """Continuing equals continuing the run that was saved, and places it."""
  tx = optax.adamw(1e-2)
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  models = [build(scan_layers=s) for s in (scan, not scan)]

  def start(model):
    params = nn.unbox(model.init(jax.random.key(1), X))['params']
    ema = jax.tree.map(jnp.copy, params)
    return {'params': params, 'ema': ema, 'opt_state': tx.init(params)}

  def make(model):
    """Abstract state, and a step on it."""
    boxed = jax.eval_shape(model.init, jax.random.key(0), X)['params']
    params = sharding.param_shardings(boxed, mesh)
    shapes = jax.eval_shape(lambda: start(model))
    moments = sharding.opt_state_shardings(
      tx, shapes['opt_state'], params, mesh
    )
    placed = {'params': params, 'ema': params, 'opt_state': moments}

    def step(state):
      def loss(params):
        return jnp.sum(jnp.sin(model.apply({'params': params}, X)))

      grads = jax.grad(loss)(state['params'])
      updates, opt_state = tx.update(grads, state['opt_state'], state['params'])
      params = optax.apply_updates(state['params'], updates)
      ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, state['ema'], params)
      return {'params': params, 'ema': ema, 'opt_state': opt_state}

    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      placed,
    )
    return abstract, placed, jax.jit(step, out_shardings=placed)

  with sharding.mesh_context(mesh):
    _, placed, step = make(models[0])
    saved = jax.jit(lambda: start(models[0]), out_shardings=placed)()
    saved = step(saved)
    manager = checkpoint.Manager(tmp_path, scores={})
    manager.save(1, saved, meta={})
    manager.wait()
    expected = step(saved)
    abstract, placed, step = make(models[1])
    found = manager.restore(abstract).state
    names = stacking.paths(abstract)
    assert_equal(found, stacking.like(saved, names))
    assert jax.tree.map(lambda x: x.sharding, found) == placed
    assert_close(step(found), stacking.like(expected, names), 1e-5)
    partial = {'params': abstract['params'], 'ema': abstract['ema']}
    partial = manager.restore(partial).state
    assert_equal(partial, {'params': found['params'], 'ema': found['ema']})
    manager.close()


def test_files_of_weights_don_t_know_layouts(tmp_path):
  model = build('vit')
  x = jnp.zeros((1, 8, 8, 3))
  params = nn.unbox(jax.jit(model.init)(jax.random.key(4), x))['params']
  stacked, scanned = (
    stacking.stack(params, DEPTH),
    model.clone(scan_layers=True),
  )
  for name, m, p in (('a', model, params), ('b', scanned, stacked)):
    timm_format.write(tmp_path / f'{name}.safetensors', m, p, {}, 8)
  files = [(tmp_path / f'{n}.safetensors').read_bytes() for n in 'ab']
  assert files[0] == files[1]
  zeros = jax.tree.map(np.zeros_like, stacked)
  path = tmp_path / 'a.safetensors'
  assert_equal(pretrained.load_pretrained(path, scanned, zeros, 8), stacked)
