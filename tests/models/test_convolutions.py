"""Convolutions and instance norm: loops over pixels, and a CPU's forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit22b_jax.models import axes, convolutions, kernels
from vit22b_jax.runtime import sharding


def normal(key, *shape):
  return 0.3 * jax.random.normal(jax.random.key(key), shape)


def loop_conv(x, kernel, strides, pad, pad_mode):
  """The definition, window by window."""
  sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  mode = 'constant' if pad_mode == 'zero' else 'reflect'
  x = np.pad(np.asarray(x, np.float64), sides, mode)
  kernel = np.asarray(kernel, np.float64)
  h, w = kernel.shape[:2]
  rows = range(0, x.shape[1] - h + 1, strides)
  columns = range(0, x.shape[2] - w + 1, strides)
  y = [
    [
      np.einsum('bhwi,hwio->bo', x[:, r : r + h, c : c + w], kernel)
      for c in columns
    ]
    for r in rows
  ]
  return np.moveaxis(np.array(y), 2, 0)


def loop_conv_transpose(x, kernel, strides, pad, output_pad):
  """The definition, pixel by pixel."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  (b, height, width, _), (h, w, _, o) = x.shape, kernel.shape
  shape = [
    (n - 1) * strides + k + output_pad for n, k in ((height, h), (width, w))
  ]
  y = np.zeros((b, *shape, o))
  for r in range(height):
    for c in range(width):
      at = np.s_[
        :, r * strides : r * strides + h, c * strides : c * strides + w
      ]
      y[at] += np.einsum('bi,hwio->bhwo', x[:, r, c], kernel)
  return y[:, pad : shape[0] - pad, pad : shape[1] - pad]


@pytest.mark.parametrize(
  ('size', 'strides', 'pad', 'pad_mode'),
  [
    (3, 1, 1, 'reflect'),
    (7, 1, 3, 'reflect'),
    (3, 2, 1, 'zero'),
    (4, 2, 1, 'zero'),
    (4, 2, 2, 'zero'),
    (4, 1, 1, 'zero'),
    (3, 1, 0, 'zero'),
  ],
)
def test_conv_is_its_definition(size, strides, pad, pad_mode):
  x, kernel = normal(0, 2, 11, 13, 3), normal(1, size, size, 3, 5)
  how = {'strides': strides, 'pad': pad, 'pad_mode': pad_mode}
  y = kernels.conv(x, kernel, precision='highest', **how)
  np.testing.assert_allclose(y, loop_conv(x, kernel, **how), rtol=0, atol=2e-6)


@pytest.mark.parametrize('output_pad', [0, 1])
def test_conv_transpose_is_its_definition(output_pad):
  x, kernel = normal(0, 2, 5, 7, 3), normal(1, 3, 3, 3, 5)
  how = {'strides': 2, 'pad': 1, 'output_pad': output_pad}
  y = kernels.conv_transpose(x, kernel, precision='highest', **how)
  expected = loop_conv_transpose(x, kernel, **how)
  assert y.shape == (2, 9 + output_pad, 13 + output_pad, 5)
  np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


def test_instance_norm_is_each_channel_s_of_each_image():
  x = 3 + normal(0, 2, 5, 7, 3) * jnp.array([1.0, 10.0, 1e-3])
  y = kernels.instance_norm(x)
  flat = np.asarray(x, np.float64).reshape(2, 35, 3)
  flat -= flat.mean(axis=1, keepdims=True)
  flat /= np.sqrt((flat**2).mean(axis=1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(y, flat.reshape(x.shape), rtol=0, atol=1e-4)


def test_modules_have_named_parameters_and_the_dtype_asked_for():
  model = convolutions.Conv(
    features=5, kernel_size=3, pad=1, pad_mode='reflect', dtype='bfloat16'
  )
  x = normal(0, 2, 6, 6, 3)
  boxed = model.init(jax.random.key(0), x)['params']
  kernel = boxed['kernel']
  assert kernel.names == (None, None, axes.CHANNELS_IN, axes.CHANNELS)
  params = nn.unbox(boxed)
  assert {k: v.shape for k, v in params.items()} == {
    'kernel': (3, 3, 3, 5),
    'bias': (5,),
  }
  assert all(p.dtype == jnp.float32 for p in params.values())
  params['bias'] += 1
  y = model.apply({'params': params}, x)
  assert y.dtype == jnp.bfloat16
  expected = 1 + loop_conv(x, params['kernel'], 1, 1, 'reflect')
  np.testing.assert_allclose(y.astype('float32'), expected, rtol=0, atol=0.02)


def test_kernels_start_small_and_biases_at_zero():
  model = convolutions.ConvTranspose(
    features=64, kernel_size=3, strides=2, pad=1, output_pad=1
  )
  x = normal(0, 1, 4, 4, 32)
  params = nn.unbox(model.init(jax.random.key(0), x))['params']
  np.testing.assert_allclose(params['kernel'].std(), 0.02, rtol=0.03)
  assert not params['bias'].any()
  assert model.apply({'params': params}, x).shape == (1, 8, 8, 64)


def test_fsdp_splits_output_channels():
  model = convolutions.Conv(features=8, kernel_size=3)
  mesh = sharding.make_mesh(data=4, fsdp=2)
  x = jax.ShapeDtypeStruct((8, 6, 6, 3), jnp.float32)
  boxed = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  spec = sharding.param_shardings(boxed, mesh)['kernel'].spec
  assert tuple(spec) == (None, None, None, 'fsdp')


@pytest.fixture
def by_reference(monkeypatch):
  """Runs a function with the reference formulas."""

  def run(function, *args):
    with monkeypatch.context() as patch:
      patch.setenv(kernels.VARIABLE, 'reference')
      return function(*args)

  return run


def value_and_gradients(function, *args):
  """The function's value, and gradients of a weighted sum of it."""
  y, pull_back = jax.vjp(function, *args)
  weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
  return y, pull_back(weights.astype(y.dtype))


def assert_close(actual, expected, tolerance):
  """max|a - b| / max|b| of every leaf."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = (np.asarray(t, np.float64) for t in (a, b))
    assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


# Batch, height, width, inputs, outputs, kernel, strides, padding.
SHAPES = {
  'a ViTUnet begins': (2, 16, 16, 12, 64, 3, 1, 1, 'reflect'),
  'a ViTUnet widens': (2, 16, 16, 64, 128, 3, 1, 1, 'reflect'),
  'tiles overhang': (1, 17, 22, 37, 41, 3, 1, 1, 'reflect'),
  'tiles, zeros outside': (1, 19, 23, 37, 41, 3, 1, 1, 'zero'),
  'too small for tiles': (1, 7, 5, 37, 41, 3, 1, 1, 'reflect'),
  'a ViTUnet ends': (2, 16, 16, 64, 3, 3, 1, 1, 'reflect'),
  'a ResNet begins': (1, 16, 20, 3, 64, 7, 1, 3, 'reflect'),
  'a ResNet ends': (1, 16, 20, 64, 3, 7, 1, 3, 'reflect'),
  'a ResNet halves': (1, 16, 20, 17, 34, 3, 2, 1, 'zero'),
  'a border as wide as the map': (1, 5, 4, 5, 3, 7, 1, 3, 'reflect'),
  'a discriminator halves': (2, 16, 14, 13, 26, 4, 2, 1, 'zero'),
  'a discriminator deepens': (2, 8, 7, 26, 52, 4, 1, 1, 'zero'),
  'a discriminator ends': (2, 7, 6, 52, 1, 4, 1, 1, 'zero'),
  'one pixel': (2, 7, 6, 52, 1, 1, 1, 0, 'zero'),
}


def run_shape(name, dtype, precision, by_reference):
  """Returns what both sets of formulas make of a row of `SHAPES`."""
  b, h, w, inputs, outputs, size, strides, pad, pad_mode = SHAPES[name]
  x = (10 / 3 * normal(0, b, h, w, inputs)).astype(dtype)
  kernel = normal(1, size, size, inputs, outputs) / size / inputs**0.5
  conv = functools.partial(
    kernels.conv,
    strides=strides,
    pad=pad,
    pad_mode=pad_mode,
    precision=precision,
  )
  actual = jax.jit(value_and_gradients, static_argnums=0)(conv, x, kernel)
  # Not jitted: jax would find the same function compiled already.
  return actual, by_reference(value_and_gradients, conv, x, kernel)


@pytest.mark.parametrize('name', SHAPES)
def test_a_cpu_computes_the_same(name, by_reference):
  assert_close(*run_shape(name, 'float32', 'default', by_reference), 1e-5)


@pytest.mark.parametrize('name', ['tiles overhang', 'a ViTUnet ends'])
def test_a_cpu_computes_half_precisions(name, by_reference):
  assert_close(*run_shape(name, 'bfloat16', 'default', by_reference), 0.02)


def test_highest_precision_takes_no_tiles(by_reference):
  actual, expected = run_shape(
    'a ViTUnet widens', 'float32', 'highest', by_reference
  )
  assert_close(actual, expected, 1e-6)


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 0.02)]
)
def test_a_cpu_normalizes_the_same(dtype, tolerance, by_reference):
  scale = jnp.array([1.0, 10.0, 1e-3, 0.0])
  x = (1 + normal(0, 2, 5, 7, 4) * scale).astype(dtype)
  norm = kernels.instance_norm
  actual = jax.jit(value_and_gradients, static_argnums=0)(norm, x)
  expected = by_reference(value_and_gradients, norm, x)
  assert_close(actual, expected, tolerance)


@pytest.mark.parametrize('outputs', [64, 41, 3])
def test_gradients_of_gradients_agree(outputs, by_reference):
  x = normal(0, 1, 16, 16, 37)
  kernel = normal(1, 3, 3, 37, outputs) / 18

  def penalty(kernel):
    def loss(x):
      y = kernels.conv(x, kernel, pad=1, pad_mode='reflect')
      return jnp.sum(jnp.sin(kernels.instance_norm(y)))

    return jnp.sum(jax.grad(loss)(x) ** 2)

  expected = by_reference(jax.jit(jax.grad(penalty)), kernel)
  assert_close(jax.jit(jax.grad(penalty))(kernel), expected, 1e-4)


def test_devices_agree_with_one():
  """Batch over 4 devices, output channels over 2."""
  mesh = sharding.make_mesh(data=4, fsdp=2)
  x, kernel = normal(0, 4, 16, 16, 37), normal(1, 3, 3, 37, 64) / 18
  conv = functools.partial(kernels.conv, pad=1, pad_mode='reflect')
  expected = value_and_gradients(conv, x, kernel)
  x = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  spec = PartitionSpec(None, None, None, 'fsdp')
  kernel = jax.device_put(kernel, NamedSharding(mesh, spec))
  actual = jax.jit(value_and_gradients, static_argnums=0)(conv, x, kernel)
  assert_close(actual, expected, 1e-5)
