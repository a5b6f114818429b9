"""Golden values, padding, merging, ties and classes that don't occur."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit22b_jax.training import losses, metrics


def sums_of(logits, labels, mask=None):
  logits, labels = jnp.asarray(logits), jnp.asarray(labels)
  mask = jnp.ones(len(labels)) if mask is None else jnp.asarray(mask)
  values = losses.cross_entropy(logits, labels)
  return jax.jit(metrics.batch_sums)(logits, labels, values, mask)


def test_equal_the_golden_values(golden):
  data = golden('metrics')
  got = metrics.means(sums_of(data['logits'], data['label']))
  assert got['num_examples'] == len(data['label'])
  np.testing.assert_allclose(got['loss'], data['cross_entropy'], rtol=1e-6)
  np.testing.assert_allclose(got['top1'], data['top1'], rtol=1e-6)
  np.testing.assert_allclose(got['top5'], data['top5'], rtol=1e-6)
  probabilities = np.asarray(jax.nn.softmax(data['logits']))
  area = metrics.auroc(probabilities, data['label'])
  np.testing.assert_allclose(area, data['auroc'], atol=1e-6)


def test_padded_batches_merge_to_the_whole(golden):
  data = golden('metrics')
  whole = metrics.means(sums_of(data['logits'], data['label']))
  total = None
  for start in range(0, len(data['label']), 64):
    logits, labels = data['logits'][start:][:64], data['label'][start:][:64]
    padding = 64 - len(labels)
    mask = np.r_[np.ones(len(labels)), np.zeros(padding)]
    # Padding must not count even where it is not a number.
    logits = np.pad(logits, ((0, padding), (0, 0)), constant_values=np.nan)
    sums = sums_of(logits, np.pad(labels, (0, padding)), mask)
    total = sums if total is None else metrics.merge(total, sums)
  got = metrics.means(total)
  assert got['num_examples'] == whole['num_examples']
  for name in ('loss', 'top1', 'top5'):
    np.testing.assert_allclose(got[name], whole[name], rtol=1e-6)


def test_top_k_by_hand():
  logits = np.array([[9, 8, 7, 6, 5, 4, 3]] * 4, np.float32)
  got = metrics.means(sums_of(logits, [0, 4, 5, 6]))
  assert got['top1'] == 0.25
  assert got['top5'] == 0.5


def test_equal_logits_are_right_for_one_class_in_seven():
  got = metrics.means(sums_of(np.zeros((7, 7), np.float32), np.arange(7)))
  assert got['top1'] == pytest.approx(1 / 7)
  assert got['top5'] == pytest.approx(5 / 7)


def test_logits_that_are_not_numbers_are_never_right():
  got = metrics.means(sums_of(np.full((3, 3), np.nan, np.float32), [0, 1, 2]))
  assert got['top1'] == got['top5'] == 0


def test_top_5_of_three_classes_is_always_right():
  logits = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
  assert metrics.means(sums_of(logits, np.arange(11) % 3))['top5'] == 1


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


def test_images_of_several_classes_have_a_loss_and_no_top_1():
  targets = jnp.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
  mask, values = jnp.array([1.0, 1.0, 0.0]), jnp.array([2.0, 4.0, jnp.nan])
  got = metrics.means(metrics.batch_sums(targets, targets, values, mask))
  assert got == {'num_examples': 2, 'loss': 3.0}
