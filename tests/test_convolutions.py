"""Convolutions and instance norm against loops over pixels, and in a mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit22b_jax import sharding
from vit22b_jax.models import axes, convolutions


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
  y = convolutions.conv(x, kernel, precision='highest', **how)
  np.testing.assert_allclose(y, loop_conv(x, kernel, **how), rtol=0, atol=2e-6)


@pytest.mark.parametrize('output_pad', [0, 1])
def test_conv_transpose_is_its_definition(output_pad):
  x, kernel = normal(0, 2, 5, 7, 3), normal(1, 3, 3, 3, 5)
  how = {'strides': 2, 'pad': 1, 'output_pad': output_pad}
  y = convolutions.conv_transpose(x, kernel, precision='highest', **how)
  expected = loop_conv_transpose(x, kernel, **how)
  assert y.shape == (2, 9 + output_pad, 13 + output_pad, 5)
  np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


def test_instance_norm_is_each_channel_s_of_each_image():
  x = 3 + normal(0, 2, 5, 7, 3) * jnp.array([1.0, 10.0, 1e-3])
  y = convolutions.instance_norm(x, 1e-5)
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
  spec = sharding.of_boxed(boxed, mesh)['kernel'].spec
  assert tuple(spec) == (None, None, None, 'fsdp')
