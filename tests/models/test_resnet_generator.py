"""CycleGAN's generator: parity with PyTorch modules, counts, errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import golden_generators, golden_params, quick
from vit22b_jax import errors
from vit22b_jax.models import generators, resnet_generator


def test_generator_agrees_with_reference():
  arrays, config = golden_params.load('resnet_generator')
  model = resnet_generator.ResNetGenerator(config['blocks'], config['width'])
  golden_generators.check(
    arrays,
    model,
    functools.partial(golden_generators.resnet_generator, config=config),
    golden_generators.recipe('resnet_generator'),
    golden_generators.resnet_noise(config),
  )


@pytest.mark.parametrize(('blocks', 'count'), [(9, 11_378_179), (6, 7_837_699)])
def test_parameter_counts(blocks, count):
  model = resnet_generator.ResNetGenerator(blocks)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images))
  assert sum(a.size for a in jax.tree.leaves(params)) == count


def test_half_precision_keeps_float32_at_both_ends():
  model = resnet_generator.ResNetGenerator(1, 8)
  images = jax.random.uniform(jax.random.key(0), (2, 12, 20, 3), minval=-1)
  variables = nn.unbox(quick.jit(model.init)(jax.random.key(1), images))
  leaves = jax.tree.leaves(variables)
  assert {a.dtype for a in leaves} == {jnp.dtype('float32')}
  kernels = [a for a in leaves if a.ndim > 1]
  assert np.std(kernels[0]) == pytest.approx(0.02, rel=0.1)
  exact = quick.jit(model.apply)(variables, images)
  half = quick.jit(model.clone(dtype='bfloat16').apply)(variables, images)
  assert half.dtype == exact.dtype == jnp.float32
  assert half.shape == images.shape
  difference = np.abs(half - exact).max()
  assert 0 < difference < 0.05 * np.abs(exact).max()


def test_section_of_a_config():
  section = {'block': None, 'patch_size': None, 'width': None}
  section |= {'generator': 'resnet', 'blocks': 6, 'dtype': 'bfloat16'}
  model = generators.build(section, 64)
  assert model == resnet_generator.ResNetGenerator(6, dtype='bfloat16')
  model = generators.build(section | {'dtype': 'auto'}, 64)
  assert model == resnet_generator.ResNetGenerator(6, dtype='float32')


@pytest.mark.parametrize(
  ('changes', 'size', 'message'),
  [
    ({'depth': 12}, 64, 'reads none of model.depth=12: use the word resnet'),
    (
      {'dropout': 0.1, 'resample': 'space'},
      64,
      "dropout=0.1, resample='space'",
    ),
    ({'attention': 'xla'}, 64, "attention='xla'"),
    (
      {'generator': 'vitunet', 'blocks': 6},
      64,
      'blocks=6 is for a ResNet only',
    ),
    ({'generator': 'vitunet'}, 64, 'patch_size=None is for a ResNet only'),
    ({}, (64, 66), 'to a multiple of 4 from 8, not 64 x 66'),
    ({}, 4, 'not 4 x 4'),
  ],
)
def test_mistakes_are_named(changes, size, message):
  with pytest.raises(errors.UserError, match=message):
    generators.build({'generator': 'resnet', **changes}, size)


def test_images_that_do_not_halve_are_refused():
  model = resnet_generator.ResNetGenerator(1, 8)
  with pytest.raises(errors.UserError, match='not 10 x 12'):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 10, 12, 3)))
