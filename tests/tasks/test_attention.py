"""Attention of small blocks, by hand."""

import numpy as np

from vit22b_jax.tasks import attention


def _blocks(tokens):
  rng = np.random.default_rng(0)
  weights = rng.uniform(size=(3, 2, 5, tokens, tokens)).astype(np.float32)
  return weights / weights.sum(-1, keepdims=True)


def test_a_class_tokens_maps_leave_it_out():
  weights = _blocks(5)
  found = attention.maps(weights, class_token=True)
  mean = weights.mean(2)
  expected = mean[-1][:, 0, 1:].reshape(2, 2, 2)
  np.testing.assert_allclose(found['last'], expected, rtol=1e-5)
  first, second, third = (0.5 * mean + 0.5 * np.eye(5)).swapaxes(0, 1)[0]
  rollout = (third @ second @ first)[0, 1:].reshape(2, 2)
  np.testing.assert_allclose(found['rollout'][0], rollout, rtol=1e-5)


def test_without_one_all_tokens_count_and_nothing_is_lost():
  weights = _blocks(9)
  found = attention.maps(weights, class_token=False)
  expected = weights.mean(2)[-1].mean(1).reshape(2, 3, 3)
  np.testing.assert_allclose(found['last'], expected, rtol=1e-5)
  np.testing.assert_allclose(found['rollout'].sum((1, 2)), 1, rtol=1e-5)
