"""Blocks: golden parity, layouts, fields apart from each other, gradients."""

import functools
import statistics
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from tests.helpers import golden_params
from vit22b_jax import errors
from vit22b_jax.models import blocks, kernels, layers, vit

# Primes where a grouping by head allows them: batch, tokens, heads.
B, L, N, K, J = 2, 11, 3, 7, 5


def relative(actual, expected):
  """max|a - b| / max|b|."""
  return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


def make(preset, *, width=N * K, num_heads=N, mlp_dim=N * J, **overrides):
  """One block of a preset, with overrides."""
  model = vit.build(preset, num_classes=1, patch_size=1)
  sizes = {'width': width, 'num_heads': num_heads, 'mlp_dim': mlp_dim}
  fields = model.shared_fields() | sizes | overrides
  return blocks.FORMS[model.form](**fields)


def tokens(key=0, shape=(B, L, N * K)):
  return jax.random.normal(jax.random.key(key), shape)


def test_presets_are_the_designed_rows():
  models = {
    name: vit.build(name, num_classes=1, patch_size=1)
    for name in blocks.PRESETS
  }
  rows = {
    name: (p.form, p.pre_norm, p.qk_norm, p.norm_scale, p.norm_bias, p.eps)
    for name, p in models.items()
  }
  assert rows == {
    'vit': ('sequential', True, False, True, True, 1e-6),
    'vit22b': ('parallel', True, True, True, False, 1e-6),
    'vit22b_mlp_norm': ('parallel', True, True, True, False, 1e-6),
    'released_vit': ('sequential', True, False, True, True, 1e-5),
    'released': ('parallel', False, True, False, False, 1e-5),
    'released_unnormed': ('parallel', False, True, False, False, 1e-5),
  }
  others = {
    name: (p.mlp_norm, p.sum_norm, p.qkv_bias, p.softmax_scale, p.final_norm)
    for name, p in models.items()
  }
  assert others == {
    'vit': (False, False, True, 'head', True),
    'vit22b': (False, False, False, 'head', True),
    'vit22b_mlp_norm': (True, False, False, 'head', True),
    'released_vit': (False, False, False, 'width', False),
    'released': (False, True, False, 'width', False),
    'released_unnormed': (False, False, False, 'width', False),
  }


@pytest.mark.parametrize('name', ['parallel_block', 'eq2_block'])
def test_parallel_block_agrees_with_reference(name):
  arrays, config = golden_params.load(name)
  params = golden_params.section(arrays, 'param')
  eq2 = name == 'eq2_block'
  if eq2:
    params['mlp_norm.weight'] = arrays['mlp_norm_weight']
    params['mlp_norm.bias'] = arrays['mlp_norm_bias']
  block = make(
    'vit22b_mlp_norm' if eq2 else 'vit22b',
    width=config['dim'],
    num_heads=config['num_heads'],
    mlp_dim=config['mlp_dim'],
    norm_bias=eq2,
  )
  tree = golden_params.parallel_block(params, config, norm_bias=eq2)

  @jax.jit
  def run(x):
    output, pullback = jax.vjp(lambda t: block.apply({'params': tree}, t)[0], x)
    return output, pullback(2 * output)[0]

  output, grad = run(arrays['tokens'])
  assert relative(output, arrays['output']) <= 1e-5
  if not eq2:
    assert relative(grad, arrays['grad_tokens']) <= 1e-4


def test_both_forms_of_the_fused_output_agree(monkeypatch):
  keys = jax.random.split(jax.random.key(1), 4)
  o = jax.random.normal(keys[0], (B, N, L, K))
  h = jax.random.normal(keys[1], (B, L, N, J))
  kernel = jax.random.normal(keys[2], (N, K + J, N * K))
  bias = jax.random.normal(keys[3], (N * K,))
  split = kernels.project_out(o, h, kernel, bias, 'highest')
  monkeypatch.setenv(kernels.VARIABLE, 'reference')
  fused = kernels.project_out(o, h, kernel, bias, 'highest')
  assert relative(fused, split) <= 1e-5


def test_parallel_block_equals_its_unfused_evaluation():
  """Attention and MLP from slices of the fused kernels, head by head."""
  block = make('vit22b')
  x = tokens()
  params = nn.unbox(jax.jit(block.init)(jax.random.key(2), x))['params']
  keys = jax.random.split(jax.random.key(3), len(jax.tree.leaves(params)))
  leaves, treedef = jax.tree.flatten(params)
  leaves = [
    a + 0.3 * jax.random.normal(k, a.shape)
    for a, k in zip(leaves, keys, strict=True)
  ]
  params = jax.tree.unflatten(treedef, leaves)

  def norm(t, scale):
    centered = t - t.mean(-1, keepdims=True)
    return (
      centered
      / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
      * (scale)
    )

  @jax.jit
  def unfused(params):
    y = norm(x, params['in_norm']['scale'])
    expected = x + params['out_proj']['bias']
    for n in range(N):
      kernel = params['in_proj']['kernel'][:, n]
      q, k, v = (y @ kernel[:, i * K : (i + 1) * K] for i in range(3))
      q, k = (
        norm(q, params['q_norm']['scale']),
        norm(k, params['k_norm']['scale']),
      )
      attention = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / np.sqrt(K))
      hidden = y @ kernel[:, 3 * K :] + params['in_proj']['bias'][n]
      out = params['out_proj']['kernel'][n]
      expected += attention @ v @ out[:K]
      expected += jax.nn.gelu(hidden, approximate=False) @ out[K:]
    return expected

  with jax.default_matmul_precision('highest'):
    expected = unfused(params)
  actual, _ = jax.jit(block.apply)({'params': params}, x)
  assert relative(actual, expected) <= 1e-5


@pytest.mark.parametrize(
  ('block', 'field', 'value'),
  [
    ('vit22b', 'pre_norm', False),
    ('vit22b', 'qk_norm', False),
    ('vit22b', 'mlp_norm', True),
    ('vit22b', 'sum_norm', True),
    ('vit22b', 'norm', 'rms'),
    ('vit22b', 'softmax_scale', 'width'),
    ('vit22b', 'qkv_bias', True),
    ('vit22b', 'eps', 0.1),
    ('vit', 'pre_norm', False),
    ('vit', 'qk_norm', True),
    ('vit', 'mlp_norm', True),
    ('vit', 'norm_scale', False),
    ('vit', 'norm_bias', False),
    ('vit', 'softmax_scale', 'width'),
  ],
)
def test_each_field_changes_the_block(block, field, value):
  """Parameters in common stay; what the field stands for shows."""
  x = 3 + tokens()
  outputs = []
  for overrides in ({}, {field: value}):
    made = make(block, init_kind='torch', **overrides)
    shapes = nn.unbox(jax.eval_shape(made.init, jax.random.key(0), x))
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.5), shapes)
    params = jax.tree.map(
      lambda a: a * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params
    )
    outputs.append(jax.jit(made.apply)(params, x)[0])
  assert relative(*outputs) > 1e-3


@pytest.mark.parametrize('block', blocks.PRESETS)
def test_gradients_reach_every_parameter(block):
  made = make(block, init_kind='torch')
  x = tokens()
  params = nn.unbox(jax.jit(made.init)(jax.random.key(0), x))

  @jax.jit
  def grads(params):
    return jax.grad(lambda p: jnp.sum(jnp.sin(made.apply(p, x)[0])))(params)

  largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), grads(params))
  for path, size in jax.tree.leaves_with_path(largest):
    assert size > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize('block', ['vit', 'vit22b'])
def test_stochastic_depth_drops_branches_of_an_image(block):
  made = make(block, stochastic_depth=0.5, init_kind='torch')
  x = tokens(shape=(31, 5, N * K))
  params = jax.jit(made.init)(jax.random.key(0), x)
  train = jax.jit(functools.partial(made.apply, train=True))
  y, _ = train(params, x, rngs={'dropout': jax.random.key(1)})
  still = np.asarray((y == x).all(axis=(1, 2)))
  assert 0 < still.sum() < 31
  assert not np.asarray((y == x).all(axis=2))[~still].any()
  assert (jax.jit(made.apply)(params, x)[0] != x).any(axis=(1, 2)).all()


@pytest.mark.parametrize('block', ['vit', 'vit22b'])
def test_half_precision_keeps_float32_where_it_matters(block):
  made = make(block, dtype='bfloat16')
  x = tokens().astype(jnp.bfloat16)
  params = nn.unbox(jax.jit(made.init)(jax.random.key(0), x))
  assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  text = str(jax.make_jaxpr(lambda t: made.apply(params, t)[0])(x))
  reductions = [line for line in text.splitlines() if 'reduce_' in line]
  assert reductions
  assert all(':f32[' in line for line in reductions)
  assert all(':f32[' in s for s in text.splitlines() if ' exp ' in s)
  y, _ = jax.jit(made.apply)(params, x)
  assert y.dtype == jnp.bfloat16
  exact = jax.jit(made.clone(dtype='float32').apply)
  exact, _ = exact(params, x.astype(jnp.float32))
  assert relative(np.asarray(y, np.float32), exact) < 0.03


@pytest.mark.parametrize('precision', ['highest', 'default'])
@pytest.mark.parametrize('block', ['vit', 'vit22b', 'vit22b_mlp_norm'])
def test_precision_reaches_every_product(block, precision):
  x = tokens()
  made = make(block, precision=precision)
  params = jax.eval_shape(made.init, jax.random.key(0), x)
  text = str(jax.make_jaxpr(lambda p: made.apply(p, x)[0])(params))
  products = text.count(' dot_general[')
  named = f'precision=(Precision.{precision.upper()}, '
  assert products >= 6
  assert text.count(named) == products


def test_norms():
  x = 10 + tokens()
  make_norm = functools.partial(layers.Norm, use_scale=True, use_bias=False)
  layer, rms = make_norm('layer', eps=1e-6), make_norm('rms', eps=0.5)
  params = {'params': {'scale': jnp.arange(1.0, 1 + N * K)}}
  exact = np.asarray(x, np.float64)
  centered = exact - exact.mean(-1, keepdims=True)
  centered /= np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
  expected = centered * np.arange(1, 1 + N * K)
  assert relative(layer.apply(params, x), expected) <= 1e-5
  expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 0.5)
  expected *= np.arange(1, 1 + N * K)
  assert relative(rms.apply(params, x), expected) <= 1e-6


def test_gelu_is_exact():
  x = np.linspace(-6, 6, 97, dtype=np.float32)  # Exact in bfloat16.
  expected = [t * statistics.NormalDist().cdf(t) for t in x.tolist()]
  np.testing.assert_allclose(kernels.gelu(x), expected, rtol=1e-5, atol=1e-6)
  half = np.asarray(kernels.gelu(x.astype(jnp.bfloat16)), np.float32)
  np.testing.assert_allclose(half, expected, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize('length', [11, 12])
def test_flash_attention_is_the_same_function(length, monkeypatch):
  """The call to cuDNN, computed by XLA: layout, scale and mask are right."""
  q, k, v, g = (tokens(i, (B, N, length, K)) for i in range(4))
  real = jax.nn.dot_product_attention

  def checked(*args, implementation, **lengths):
    assert implementation == 'cudnn' and args[0].shape == (B, 12, N, K)
    return real(*args, implementation='xla', **lengths)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', checked)

  def explicit(q, k, v):
    return kernels.attention(q, k, v, 0.3, 'highest')[0]

  flash = functools.partial(kernels.cudnn.attention, scale=0.3)
  (actual, pull), (expected, their_pull) = (
    jax.vjp(f, q, k, v) for f in (flash, explicit)
  )
  for a, b in zip((actual, *pull(g)), (expected, *their_pull(g)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('kind', 'dtype', 'head_dim', 'expected'),
  [
    ('auto', 'bfloat16', 64, True),
    ('auto', 'float16', 128, True),
    ('auto', 'float32', 64, False),
    ('auto', 'bfloat16', 60, False),
    ('auto', 'bfloat16', 136, False),
    ('xla', 'bfloat16', 64, False),
    ('cudnn', 'bfloat16', 64, True),
  ],
)
def test_cudnn_is_taken_on_gpus_where_it_can_be(
  kind, dtype, head_dim, expected
):
  device = AbstractDevice(device_kind='H100', num_cores=None, platform='gpu')
  gpus = AbstractMesh((2,), ('data',), abstract_device=device)
  with jax.sharding.use_abstract_mesh(gpus):
    assert kernels.takes_cudnn(kind, dtype, head_dim) == expected
  if kind != 'cudnn':
    assert not kernels.takes_cudnn(kind, dtype, head_dim)


@pytest.mark.parametrize(
  ('capability', 'expected'),
  [
    ('7.0', False),
    ('7.5', False),
    ('8.0', True),
    ('12.0', True),
    ('gfx', False),
  ],
)
def test_cudnn_is_left_to_the_gpus_that_have_it(
  monkeypatch, capability, expected
):
  gpu = mock.Mock(platform='gpu', compute_capability=capability)
  gpu.device_kind = 'Tesla T4'
  monkeypatch.setattr(jax, 'devices', lambda: [gpu])
  monkeypatch.setattr(kernels, 'platform', lambda: 'gpu')
  assert kernels.takes_cudnn('auto', 'bfloat16', 64) is expected
  if not expected:
    with pytest.raises(errors.UserError, match=r'8\.0 .* on Tesla T4'):
      kernels.takes_cudnn('cudnn', 'bfloat16', 64)


def test_flash_attention_needs_a_gpu():
  with pytest.raises(errors.UserError, match=r"runs on cpu: use 'auto'"):
    kernels.takes_cudnn('cudnn', 'bfloat16', 64)
