"""What predictions tell: hand-computed classes, calibration and intervals."""

import numpy as np
import pytest
from sklearn import metrics

from vit22b_jax.report import scores


def random_predictions(count=300, classes=5, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(classes, size=count)
  logits = rng.standard_normal((count, classes))
  logits[np.arange(count), labels] += 1
  exp = np.exp(logits)
  return exp / exp.sum(1, keepdims=True), labels


def by_class(counts):
  return scores.by_class(counts.diagonal(), counts.sum(1), counts.sum(0))


def test_classes_have_precision_and_recall():
  a, b, c = by_class(np.array([[8, 2, 0], [4, 6, 0], [0, 0, 0]]))
  assert a == (10, 8 / 12, 0.8) and b == (10, 0.75, 0.6)
  assert c[0] == 0 and np.isnan(c[1:]).all()


def test_classes_are_those_of_sklearn():
  probabilities, labels = random_predictions()
  chosen = probabilities.argmax(1)
  found = by_class(metrics.confusion_matrix(labels, chosen))
  precision, recall, _, support = metrics.precision_recall_fscore_support(
    labels, chosen
  )
  expected = np.stack([support, precision, recall], 1)
  np.testing.assert_allclose(found, expected)


def test_calibration_by_hand():
  # Two images at 0.9, one of them right; two at 0.6, both right.
  probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
  found = scores.calibration(probabilities, np.array([0, 1, 1, 1]))
  np.testing.assert_allclose(found.confidence, [0.6, 0.9])
  np.testing.assert_allclose(found.accuracy, [1, 0.5])
  np.testing.assert_array_equal(found.count, [2, 2])
  assert found.error == pytest.approx((0.4 + 0.4) / 2)


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error():
  probabilities = np.tile([0.75, 0.25], (4, 1))
  found = scores.calibration(probabilities, np.array([0, 0, 0, 1]))
  assert found.error == pytest.approx(0)


def test_confidence_of_one_is_in_the_last_bin():
  found = scores.calibration(np.array([[1.0, 0.0]]), np.array([0]))
  np.testing.assert_array_equal(found.count, [1])


def test_the_loss_interval_is_students():
  probabilities, labels = random_predictions()
  low, high = scores.loss_interval(probabilities, labels)
  loss = -np.log(probabilities[np.arange(300), labels])
  half = 1.967903 * loss.std(ddof=1) / np.sqrt(300)  # t, 299 degrees of freedom
  assert (low, high) == pytest.approx((loss.mean() - half, loss.mean() + half))


def test_the_auroc_interval_is_as_wide_as_resampling_says():
  probabilities, labels = random_predictions()
  low, high = scores.auroc_interval(probabilities, labels)
  area = metrics.roc_auc_score(labels, probabilities, multi_class='ovr')
  assert (low + high) / 2 == pytest.approx(area)
  rng = np.random.default_rng(0)
  areas = []
  for _ in range(300):
    rows = rng.integers(300, size=300)
    areas.append(
      metrics.roc_auc_score(
        labels[rows], probabilities[rows], multi_class='ovr'
      )
    )
  assert high - low == pytest.approx(2 * 1.96 * np.std(areas), rel=0.15)


def test_a_missing_class_has_no_auroc_interval():
  probabilities, labels = random_predictions()
  labels[labels == 2] = 1
  assert scores.auroc_interval(probabilities, labels) is None
