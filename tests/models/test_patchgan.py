"""Discriminators: golden parity, counts, receptive fields, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import golden_generators, golden_params, quick
from vit22b_jax.models import patchgan


def init(model, images):
  return nn.unbox(quick.jit(model.init)(jax.random.key(0), images))


@pytest.mark.parametrize(
  ('file', 'name'),
  [('patchgan70', 'patchgan70'), ('released_discriminator', 'released')],
)
def test_scores_agree_with_reference(file, name):
  arrays, _ = golden_params.load(file)
  weights = golden_params.section(arrays, 'param')
  weights = weights or golden_generators.recipe(file)
  model = patchgan.build(name)
  params = golden_generators.discriminator(weights)
  scores = quick.jit(model.apply)(
    {'params': params}, golden_params.images(arrays)
  )
  expected = arrays['output'].transpose(0, 2, 3, 1)
  assert scores.shape == expected.shape
  assert np.abs(scores - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
  ('name', 'count'), [('patchgan70', 2_764_737), ('released', 18_036)]
)
def test_parameter_counts(name, count):
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
  model = patchgan.build(name)
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images))
  assert sum(a.size for a in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
  ('name', 'field'), [('patchgan70', 70), ('released', 94)]
)
def test_a_score_sees_as_many_pixels_as_its_name_says(name, field, monkeypatch):
  """Without norms, which let every score see every pixel."""
  monkeypatch.setattr(patchgan.kernels, 'instance_norm', lambda x: x)
  model = patchgan.build(name)
  images = jnp.full((1, 160, 160, 3), 0.5)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images))
  params = jax.tree.map(lambda s: jnp.full(s.shape, 1e-3), shapes)

  @quick.jit
  def seen(images):
    def middle(images):
      scores = model.apply(params, images)
      return scores[0, scores.shape[1] // 2, scores.shape[2] // 2, 0]

    return jnp.abs(jax.grad(middle)(images)).sum(axis=(0, 3)) > 0

  rows, columns = np.nonzero(seen(images))
  assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == field


@pytest.mark.parametrize('name', patchgan.PRESETS)
def test_gradients_reach_every_parameter(name):
  """But biases before an instance norm, which takes them out again."""
  model = patchgan.build(name)
  images = jax.random.uniform(jax.random.key(1), (2, 37, 53, 3), minval=-1)
  variables = init(model, images)

  @quick.jit
  def largest(params):
    def loss_fn(params):
      return jnp.sum(jnp.square(model.apply({'params': params}, images)))

    return jax.tree.map(lambda g: jnp.abs(g).max(), jax.grad(loss_fn)(params))

  normed = [
    f'conv_{i}' for i, n in enumerate(patchgan.PRESETS[name].normed) if n
  ]
  sizes = largest(variables['params'])
  for conv, leaves in sizes.items():
    assert leaves['kernel'] > 1e-6, conv
    if conv in normed:
      assert leaves['bias'] < 1e-4 * leaves['kernel'], conv
    else:
      assert leaves['bias'] > 1e-6, conv


@pytest.mark.parametrize('name', patchgan.PRESETS)
def test_half_precision_keeps_float32_at_both_ends(name):
  model = patchgan.build(name)
  images = jax.random.uniform(jax.random.key(2), (2, 37, 29, 3), minval=-1)
  variables = init(model, images)
  assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  exact = quick.jit(model.apply)(variables, images)
  half = quick.jit(model.clone(dtype='bfloat16').apply)(variables, images)
  assert half.dtype == exact.dtype == jnp.float32
  assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
  ('name', 'side'), [('patchgan70', 24), ('released', 2)]
)
def test_smallest_images(name, side):
  model = patchgan.build(name)

  def scores(side):
    images = jax.ShapeDtypeStruct((1, side, 2 * side, 3), 'float32')
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0]

  assert scores(side).shape[1] == 1
  assert scores(side - 1).shape[1] == 0
