"""FID-Inception against features that PyTorch computed, and its own parts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.helpers import golden_params
from vit22b_jax.fid import inception_resize, inception_weights
from vit22b_jax.models import inception

TAPS = tuple(inception.TAPS)
SETS = 'abcd'  # 299 x 299, 64 x 48, 32 x 32, 400 x 310


@functools.cache
def features():
  """Of one image of each set, by tap; and the bias of the logits."""
  arrays, config = golden_params.load('inception_fid')
  params, _ = inception_weights.load(f'random:{config["seed"]}', TAPS)
  images = [
    inception_resize.batch(arrays[f'image_{s}'].astype(np.float32), 'tf1')
    for s in SETS
  ]
  model = inception.Inception(TAPS)
  apply = jax.jit(lambda p, x: model.apply({'params': p}, x))
  return apply(params, jnp.concatenate(images)), params['fc']['bias']


@pytest.mark.parametrize('tap', TAPS)
@pytest.mark.parametrize('row', range(4), ids=SETS)
def test_golden_features(tap, row):
  arrays, _ = golden_params.load('inception_fid')
  found, bias = features()
  ours = np.asarray(found[tap][row])
  assert ours.shape == (inception.TAPS[tap],)
  if tap == 'logits':
    tap, ours = 'logits_unbiased', ours - bias
  expected = arrays[f'feature_{SETS[row]}/{tap}'][0]
  # 1e-4 is the aim; a layer's slip, such as a pool's, is far above 2e-6.
  assert np.abs(ours - expected).max() < 2e-6 * np.abs(expected).max()


def test_nothing_is_computed_past_the_tap():
  image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
  layers, costs = {}, {}
  for tap in TAPS:
    model = inception.Inception((tap,))
    tree = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    layers[tap] = set(tree)
    lowered = jax.jit(model.apply).lower({'params': tree}, image)
    costs[tap] = lowered.cost_analysis()['flops'] / 2e9
  assert layers['64'] == {f'Conv2d_{n}_3x3' for n in ('1a', '2a', '2b')}
  assert 'Mixed_5b' not in layers['192']
  assert 'Mixed_6e' in layers['768'] and 'Mixed_7a' not in layers['768']
  assert 'Mixed_7c' in layers['2048'] and 'fc' not in layers['2048']
  # G multiply-adds an image: 5.7 in all, as published for Inception-v3.
  assert costs['64'] == pytest.approx(0.62, rel=0.05)
  assert costs['2048'] == pytest.approx(5.7, rel=0.05)


def test_every_product_is_at_the_highest_precision():
  model = inception.Inception(TAPS)
  image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
  tree = jax.eval_shape(model.init, jax.random.key(0), image)
  text = str(jax.make_jaxpr(model.apply)(tree, image))
  products = text.count('dot_general[') + text.count('conv_general_dilated[')
  assert products > 94  # convolutions, and the last layer
  highest = text.count('precision=Precision.HIGHEST')
  highest += text.count('precision=(Precision.HIGHEST, Precision.HIGHEST)')
  assert highest == products


def plain(x, kernel, stride, pad):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(p, p) for p in pad],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision='highest',
  )


@pytest.mark.parametrize('hw', [(7, 9), (8, 7), (11, 8)])
@pytest.mark.parametrize(
  'size, stride, pad',
  [
    ((1, 1), 1, (0, 0)),
    ((3, 3), 2, (0, 0)),
    ((5, 5), 1, (2, 2)),
    ((1, 7), 1, (0, 3)),
    ((7, 1), 1, (3, 0)),
  ],
)
def test_convolutions_in_any_form(hw, size, stride, pad):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, *hw, 5), np.float32)
  kernel = rng.standard_normal((*size, 5, 3), np.float32)
  np.testing.assert_allclose(
    inception._conv(x, kernel, stride, pad),
    plain(x, kernel, stride, pad),
    atol=1e-5,
  )


@pytest.mark.parametrize('hw', [(7, 9), (8, 7)])
def test_pools(hw):
  # All negative: a zero from the padding would win the maximum.
  x = np.random.default_rng(0).uniform(-9, -1, (2, *hw, 3)).astype(np.float32)
  for stride, pad in ((2, 0), (1, 1)):
    edge = ((pad, pad), (pad, pad))
    np.testing.assert_array_equal(
      inception._max_pool(x, stride, pad),
      nn.max_pool(x, (3, 3), (stride, stride), edge),
    )
  mean = nn.avg_pool(
    x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False
  )
  np.testing.assert_allclose(inception._average_pool(x), mean, rtol=1e-6)


def test_averaging_commutes_with_a_kernel_of_one_pixel():
  x = np.random.default_rng(0).standard_normal((2, 5, 7, 11), np.float32)
  after = inception.Conv(3, (1, 1), average=True)
  params = after.init(jax.random.key(0), x)
  bias = jax.tree.map(lambda p: p + 0.3, params)
  before = inception.Conv(3, (1, 1)).apply(bias, inception._average_pool(x))
  np.testing.assert_allclose(after.apply(bias, x), before, atol=1e-6)
