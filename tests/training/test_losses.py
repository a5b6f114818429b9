"""Losses by hand and against golden ones, the penalty against a gradient."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit22b_jax import errors
from vit22b_jax.training import losses


def test_softmax_equals_the_golden_cross_entropy(golden):
  data = golden('metrics')
  got = losses.cross_entropy(jnp.asarray(data['logits']), data['label'])
  assert got.shape == data['label'].shape
  np.testing.assert_allclose(got.mean(), data['cross_entropy'], rtol=1e-6)


@pytest.mark.parametrize('kind', ('softmax', 'sigmoid'))
def test_probabilities_in_the_place_of_labels(kind):
  """Cross entropy is linear in its targets, smoothed ones included."""
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(5, 7)))
  first, second = jnp.arange(5), jnp.array([6, 0, 2, 1, 4])
  targets = 0.3 * jax.nn.one_hot(first, 7) + 0.7 * jax.nn.one_hot(second, 7)

  def loss(labels):
    return losses.cross_entropy(logits, labels, kind=kind, label_smoothing=0.1)

  expected = 0.3 * loss(first) + 0.7 * loss(second)
  np.testing.assert_allclose(loss(targets), expected, rtol=1e-6)


def test_label_smoothing_by_hand():
  logits, label, s = np.array([2.0, -1.0, 0.5]), 0, 0.3
  target = np.array([1 - s + s / 3, s / 3, s / 3])
  expected = -(target * (logits - np.log(np.exp(logits).sum()))).sum()
  got = losses.cross_entropy(
    jnp.asarray(logits)[None], jnp.array([label]), label_smoothing=s
  )
  np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_sigmoid_sums_a_binary_cross_entropy_for_each_class():
  logits = np.array([2.0, -1.0, 0.5])
  p = 1 / (1 + np.exp(-logits))
  expected = -(np.log(1 - p[0]) + np.log(p[1]) + np.log(1 - p[2]))
  got = losses.cross_entropy(
    jnp.asarray(logits)[None], jnp.array([1]), kind='sigmoid'
  )
  np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_class_weights_have_a_mean_of_1_over_the_images():
  labels = np.repeat([0, 1, 3], [6, 3, 1])  # class 2 has no image
  for setting, ratio in (
    ('balanced', (1, 2, 6)),
    ('1,2.5,9,.5', (1, 2.5, 0.5)),
  ):
    weights = losses.class_weights(setting, labels, 4)
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights[[0, 1, 3]] / weights[0], ratio)
  with pytest.raises(errors.UserError, match='each of the 4 classes'):
    losses.class_weights('1,2', labels, 4)


def test_class_weights_of_images_of_several_classes():
  labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
  weights = losses.class_weights('balanced', labels, 3)
  np.testing.assert_allclose(weights[1] / weights[0], 3)
  w = weights[0]  # images have w, (w + 3 w) / 2, w; the last none, so 1
  np.testing.assert_allclose(
    [w, 2 * w, w], np.array([1, 2, 1]) * 3 / 4, rtol=1e-6
  )
  got = losses.example_weights(labels, weights)
  np.testing.assert_allclose(got, [w, 2 * w, w, 1], rtol=1e-6)


def test_the_weight_of_a_mixed_example_is_that_of_its_classes():
  weights = np.array([0.5, 2.0, 1.0])
  mixed = jnp.array([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
  got = losses.example_weights(mixed, weights)
  np.testing.assert_allclose(got, [0.25 * 0.5 + 0.75 * 2, 1])
  got = losses.example_weights(jnp.array([1, 0]), weights)
  np.testing.assert_allclose(got, [2, 0.5])


def test_half_precision_logits_give_a_float32_loss():
  logits = jnp.full((2, 7), 3.0, jnp.bfloat16)
  got = losses.cross_entropy(logits, jnp.array([0, 6]))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, np.log(7), rtol=1e-6)


def test_penalty_is_the_squared_norm_of_each_examples_gradient():
  rng = np.random.default_rng(0)
  images = rng.standard_normal((5, 3, 2, 3)).astype(np.float32)
  w = rng.standard_normal((3, 2, 3)).astype(np.float32)

  def loss_fn(images):  # the gradient with respect to image i is w * y_i
    y = jnp.einsum('bhwc,hwc->b', images, w)
    return y**2 / 2, y

  got, aux = losses.penalized(loss_fn, images, strength=0.1)
  y = np.einsum('bhwc,hwc->b', images, w)
  expected = y**2 / 2 + 0.1 * y**2 * (w**2).sum()
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  np.testing.assert_allclose(aux, y, rtol=1e-5)


def test_penalty_trains_the_weights():
  images = jnp.ones((2, 1, 1, 3))

  def mean_loss(w, strength):
    def loss_fn(images):
      return (images * w).sum((1, 2, 3)), None

    return losses.penalized(loss_fn, images, strength)[0].mean()

  w = jnp.array([1.0, -2.0, 0.5])
  without = jax.grad(mean_loss)(w, 0.0)
  np.testing.assert_allclose(without, 1)
  with_penalty = jax.grad(mean_loss)(w, 0.5)
  np.testing.assert_allclose(with_penalty - without, w, rtol=1e-6)


def test_cyclegan_losses_equal_the_golden_ones(golden):
  data = golden('cyclegan_losses')
  settings = json.loads(str(data['config']))
  got = losses.adversarial(jnp.asarray(data['pred_fake']), real=True)
  cycle = settings['lambda_cycle']
  got += cycle * losses.l1(data['cycle'], data['real'])
  np.testing.assert_allclose(got, data['g_loss'], rtol=1e-6)
  weight = cycle * settings['lambda_identity']
  got += weight * losses.l1(data['identity'], data['real'])
  np.testing.assert_allclose(got, data['g_loss_identity'], rtol=1e-6)
  scores = jnp.asarray(data['pred_real']), jnp.asarray(data['pred_fake'])
  got = losses.discriminator(*scores)
  np.testing.assert_allclose(got, data['d_loss'], rtol=1e-6)


def test_vanilla_is_the_cross_entropy_of_a_logit():
  scores = np.array([[2.0, -1.0], [0.5, 3.0]])
  p = 1 / (1 + np.exp(-scores))
  got = losses.adversarial(jnp.asarray(scores), real=True, kind='vanilla')
  np.testing.assert_allclose(got, -np.log(p).mean(), rtol=1e-6)
  got = losses.adversarial(jnp.asarray(scores), real=False, kind='vanilla')
  np.testing.assert_allclose(got, -np.log(1 - p).mean(), rtol=1e-6)


def test_half_precision_gives_float32_cyclegan_losses():
  half = jnp.full((3, 5), 0.25, jnp.float16)
  assert losses.adversarial(half, real=True).dtype == jnp.float32
  assert losses.l1(half, half).dtype == jnp.float32
  # In float16 the mean of a large batch would lose its small terms.
  many = jnp.full((300, 300), 1e-3, jnp.float16)
  np.testing.assert_allclose(losses.l1(many, -many), 2e-3, rtol=1e-3)
