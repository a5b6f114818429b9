"""CycleGAN losses against the golden ones, and by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from vit22b_jax import errors
from vit22b_jax.training import losses_gan


def test_losses_equal_the_golden_ones(golden):
  data = golden('cyclegan_losses')
  settings = json.loads(str(data['config']))
  got = losses_gan.adversarial(jnp.asarray(data['pred_fake']), real=True)
  cycle = settings['lambda_cycle']
  got += cycle * losses_gan.l1(data['cycle'], data['real'])
  np.testing.assert_allclose(got, data['g_loss'], rtol=1e-6)
  weight = cycle * settings['lambda_identity']
  got += weight * losses_gan.l1(data['identity'], data['real'])
  np.testing.assert_allclose(got, data['g_loss_identity'], rtol=1e-6)
  scores = jnp.asarray(data['pred_real']), jnp.asarray(data['pred_fake'])
  got = losses_gan.discriminator(*scores)
  np.testing.assert_allclose(got, data['d_loss'], rtol=1e-6)


def test_vanilla_is_the_cross_entropy_of_a_logit():
  scores = np.array([[2.0, -1.0], [0.5, 3.0]])
  p = 1 / (1 + np.exp(-scores))
  got = losses_gan.adversarial(jnp.asarray(scores), real=True, kind='vanilla')
  np.testing.assert_allclose(got, -np.log(p).mean(), rtol=1e-6)
  got = losses_gan.adversarial(jnp.asarray(scores), real=False, kind='vanilla')
  np.testing.assert_allclose(got, -np.log(1 - p).mean(), rtol=1e-6)


def test_half_precision_gives_float32_losses():
  half = jnp.full((3, 5), 0.25, jnp.float16)
  assert losses_gan.adversarial(half, real=True).dtype == jnp.float32
  assert losses_gan.l1(half, half).dtype == jnp.float32
  # In float16 the mean of a large batch would lose its small terms.
  many = jnp.full((300, 300), 1e-3, jnp.float16)
  np.testing.assert_allclose(losses_gan.l1(many, -many), 2e-3, rtol=1e-3)


def test_unknown_kind():
  with pytest.raises(errors.UserError, match=r"loss\.gan='hinge'.*lsgan"):
    losses_gan.adversarial(jnp.zeros(2), real=True, kind='hinge')
