"""Golden values, ties, not-a-numbers and classes that don't occur."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit22b_jax.training import losses, metrics


def scores_of(logits, labels):
  logits, labels = jnp.asarray(logits), jnp.asarray(labels)
  ranks = jax.jit(metrics.ranks)(logits, labels)
  values = losses.cross_entropy(logits, labels)
  probabilities = losses.probabilities(logits, 'softmax')
  return metrics.scores(
    *map(np.asarray, (values, ranks, probabilities, labels))
  )


def test_equal_the_golden_values(golden):
  data = golden('metrics')
  got = scores_of(data['logits'], data['label'])
  assert got['num_examples'] == len(data['label'])
  np.testing.assert_allclose(got['loss'], data['cross_entropy'], rtol=1e-6)
  np.testing.assert_allclose(got['top1'], data['top1'], rtol=1e-6)
  np.testing.assert_allclose(got['top5'], data['top5'], rtol=1e-6)
  np.testing.assert_allclose(got['auroc'], data['auroc'], atol=1e-6)


def test_top_k_by_hand():
  logits = np.array([[9, 8, 7, 6, 5, 4, 3]] * 4, np.float32)
  got = scores_of(logits, [0, 4, 5, 6])
  assert got['top1'] == 0.25
  assert got['top5'] == 0.5


def test_equal_logits_are_right_for_one_class_in_seven():
  got = scores_of(np.zeros((7, 7), np.float32), np.arange(7))
  assert got['top1'] == pytest.approx(1 / 7)
  assert got['top5'] == pytest.approx(5 / 7)


def test_logits_that_are_not_numbers_are_never_right():
  got = scores_of(np.full((3, 3), np.nan, np.float32), [0, 1, 2])
  assert got['top1'] == got['top5'] == 0


def test_top_5_of_three_classes_is_always_right():
  logits = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
  assert scores_of(logits, np.arange(11) % 3)['top5'] == 1


def test_auroc_leaves_absent_classes_out():
  scores = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.7, 0.3, 0]])
  labels = np.array([0, 1, 1])  # class 2 doesn't occur
  assert metrics.auroc(scores, labels) == 1
  assert metrics.auroc(scores, np.array([1, 0, 0])) == 0


def test_auroc_of_one_class_or_of_no_numbers_is_not_a_number():
  scores = np.full((4, 2), 0.5)
  assert np.isnan(metrics.auroc(scores, np.zeros(4, int)))
  assert np.isnan(metrics.auroc(scores * np.nan, np.array([0, 1, 0, 1])))


def test_average_precision_by_hand_and_of_a_class_without_an_image():
  scores = np.array([[0.9, 0.1, 0.3], [0.8, 0.9, 0.3], [0.7, 0.2, 0.1]])
  targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], np.float32)
  got = metrics.average_precision(scores, targets)
  # The first: precision 1 at recall 1/2, and 2/3 at recall 1.
  np.testing.assert_allclose(got, [(1 + 2 / 3) / 2, 1, np.nan])
  assert np.isnan(metrics.average_precision(scores * np.nan, targets)).all()
