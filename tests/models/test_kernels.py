"""Both sets of formulas: chosen in one place, equal in values and gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  NamedSharding,
  PartitionSpec,
)

from vit22b_jax import errors
from vit22b_jax.models import kernels, layers
from vit22b_jax.models.kernels import cpu, reference
from vit22b_jax.runtime import sharding

# Batch, tokens, heads, head size, a head's share of the MLP: distinct primes,
# but for those that devices divide.
B, L, N, K, J = 4, 11, 2, 5, 7
D = 13


def normal(key, *shape):
  """Small enough that differences don't grow from one function to the next."""
  return 0.3 * jax.random.normal(jax.random.key(key), shape)


def sequential(x, p, precision='highest'):
  """Every function that a sequential block calls."""
  y = kernels.norm(x, p['scale'], p['shift'], 1e-6, True)
  q, k, v = layers.project_heads_in(y, p['qkv'], p['qkv_bias'], 3, precision)
  o = kernels.attention(q, k, v, 0.5, precision)[0]
  o = kernels.materialize(jnp.swapaxes(o, 1, 2)).reshape(*x.shape[:2], N * K)
  attn_out = p['attn_out'].reshape(-1, D)
  x += kernels.linear(o, attn_out, p['bias'], precision)
  y = kernels.norm(x, None, None, 1e-6, False)
  h = kernels.gelu(kernels.linear(y, p['mlp_in'], p['mlp_bias'], precision))
  return x + kernels.linear(h, p['mlp_out'], None, precision)


def parallel(x, p, precision='highest'):
  """Every function that a parallel block calls."""
  y = kernels.norm(x, p['scale'], None, 1e-6, True)
  h = kernels.linear(y, p['in'][..., 3 * K :].reshape(D, -1), None, precision)
  h = h.reshape(*x.shape[:2], N, J) + p['in_bias']
  q, k, v = layers.project_heads_in(
    y, p['in'][..., : 3 * K], None, 3, precision
  )
  q = kernels.norm(q, p['q_scale'], None, 1e-6, True)
  o = kernels.attention(q, k, v, 0.5, precision)[0]
  h = kernels.gelu(h)
  return x + kernels.project_out(o, h, p['out'], p['bias'], precision)


PARAMS = {
  sequential: {
    'scale': normal(1, D),
    'shift': normal(2, D),
    'qkv': normal(3, D, N, 3 * K),
    'qkv_bias': normal(4, N, 3 * K),
    'attn_out': normal(5, N, K, D),
    'bias': normal(6, D),
    'mlp_in': normal(7, D, N * J),
    'mlp_bias': normal(8, N * J),
    'mlp_out': normal(9, N * J, D),
  },
  parallel: {
    'scale': normal(1, D),
    'in': normal(2, D, N, 3 * K + J),
    'in_bias': normal(3, N, J),
    'q_scale': normal(4, K),
    'out': normal(5, N, K + J, D),
    'bias': normal(6, D),
  },
}
X = normal(0, B, L, D)


def value_and_gradients(block, x, params):
  """A scalar of the block's output, the output, and all gradients."""

  def loss(x, params):
    y = block(x, params)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, params)


def assert_close(actual, expected, tolerance):
  """max|a - b| / max|b| of every leaf."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = (np.asarray(t, np.float64) for t in (a, b))
    assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


@pytest.fixture
def by_reference(monkeypatch):
  """Runs a function with the reference formulas."""

  def run(function, *args):
    with monkeypatch.context() as patch:
      patch.setenv(kernels.VARIABLE, 'reference')
      return function(*args)

  return run


@pytest.mark.parametrize('block', PARAMS)
@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [('float32', 2e-6), ('bfloat16', 0.1)]
)
def test_values_and_gradients_agree(block, dtype, tolerance, by_reference):
  args = block, X.astype(dtype), PARAMS[block]
  actual = jax.jit(value_and_gradients, static_argnums=0)(*args)
  assert_close(actual, by_reference(value_and_gradients, *args), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('block', PARAMS)
def test_gradients_of_gradients_agree(block, by_reference):
  def penalty(params):
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(block(x, params))))(X)
    return jnp.sum(gradient**2)

  actual = jax.grad(penalty)(PARAMS[block])
  assert_close(actual, by_reference(jax.grad(penalty), PARAMS[block]), 1e-5)


@pytest.mark.parametrize('block', PARAMS)
def test_devices_agree_with_one(block):
  """Batch over 4 devices, heads and hidden units over 2."""
  mesh = jax.make_mesh((4, 2), ('d', 't'), axis_types=(AxisType.Auto,) * 2)

  def place(path, leaf):
    heads = {'qkv': 1, 'in': 1, 'attn_out': 0, 'out': 0, 'in_bias': 0}
    heads |= {'qkv_bias': 0, 'mlp_in': 1, 'mlp_bias': 0, 'mlp_out': 0}
    spec = [None] * leaf.ndim
    if path[0].key in heads:
      spec[heads[path[0].key]] = 't'
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

  params = jax.tree_util.tree_map_with_path(place, PARAMS[block])
  x = jax.device_put(X, NamedSharding(mesh, PartitionSpec('d')))
  step = jax.jit(value_and_gradients, static_argnums=0)
  assert_close(step(block, x, params), step(block, X, PARAMS[block]), 2e-6)
  text = step.lower(block, x, params).compile().as_text()
  assert f'f32[{B // 4},{L},{D}]' in text  # The batch stays split.


def test_norm_of_rows_with_a_large_mean_keeps_its_digits():
  x = X + 1e4
  expected = np.asarray(x, np.float64)
  expected -= expected.mean(-1, keepdims=True)
  expected /= np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-6)
  actual = kernels.norm(x, None, None, 1e-6, True)
  np.testing.assert_allclose(actual, expected, atol=0.02)


def test_gelu_is_the_exact_one():
  x = jnp.linspace(-6, 6, 1001)
  expected = jax.nn.gelu(x, approximate=False)
  np.testing.assert_allclose(kernels.gelu(x), expected, atol=1e-6)


# --- The choice ------------------------------------------------------------


def test_the_mesh_in_context_decides():
  device = AbstractDevice(device_kind='TPU v4', num_cores=1, platform='tpu')
  tpus = AbstractMesh((2,), ('data',), abstract_device=device)

  @jax.jit  # traced anew for each mesh, also where a trace calls it
  def inner(x):
    return x if kernels.active() is cpu else 2 * x

  def products():
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    return str(jax.make_jaxpr(inner)(x)).count('mul')

  assert kernels.platform() == 'cpu' and products() == 0
  with jax.sharding.use_abstract_mesh(tpus):
    assert kernels.platform() == 'tpu' and products() == 1
  with sharding.mesh_context(sharding.make_mesh()):
    assert kernels.platform() == 'cpu' and products() == 0


def test_a_variable_forces_the_reference(monkeypatch):
  assert kernels.active() is cpu
  monkeypatch.setenv(kernels.VARIABLE, 'reference')
  assert kernels.active() is reference
  assert kernels.platform() == 'cpu'
  monkeypatch.setenv(kernels.VARIABLE, 'cpu')
  message = r"KERNELS='cpu' is not one of auto, reference"
  with pytest.raises(errors.UserError, match=message):
    kernels.linear(X, PARAMS[sequential]['mlp_in'], None, 'highest')


def test_both_sets_have_the_same_signatures():
  chosen = [f for f in vars(kernels).values() if hasattr(f, '__wrapped__')]
  assert len(chosen) == 5
  for function in chosen:
    name = function.__name__
    signature = inspect.signature(getattr(reference, name))
    found = inspect.signature(getattr(cpu, name))
    assert str(found) == str(signature), name
