"""Computes what predictions tell: classes, confusions, calibration, errors."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int, Integer, Num

from vit22b_jax.report import intervals

BINS = 15  # of confidence
_LARGE = 20_000_000  # probabilities, above which AUROC has no interval
_YES = 0.5  # probability from which on a class of several is predicted


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Holds what a classifier gives for a split.

  Attributes:
    values: see `metrics.scores`.
    probabilities: see `losses.probabilities`.
    labels: the true classes, in the same order; where an image may have
      several, 1 for each of them.
    indices: the images' places in the split; those that can't be read are
      missing.
  """

  values: dict[str, Any]
  probabilities: Float[np.ndarray, 'n C']
  labels: Integer[np.ndarray, ' n'] | Num[np.ndarray, 'n C']
  indices: Int[np.ndarray, ' n']

  @property
  def multi_label(self) -> bool:
    return self.labels.ndim == 2

  @property
  def chosen(self) -> Bool[np.ndarray, 'n C']:
    """Returns the classes that are predicted where there may be several."""
    return self.probabilities >= _YES

  @property
  def right(self) -> Bool[np.ndarray, ' n']:
    """Returns which images have all and no other than their classes."""
    if self.multi_label:
      return (self.chosen == (self.labels > 0)).all(1)
    return self.probabilities.argmax(1) == self.labels

  def worst_first(self) -> Int[np.ndarray, ' n']:
    """Returns rows: errors first, each kind by confidence."""
    sure = self.probabilities.max(1)
    if self.multi_label:
      sure = np.abs(self.probabilities - self.labels).max(1)
    return np.lexsort((-sure, self.right))

  def names(self, rows: list[int], names: list[str]) -> dict[str, np.ndarray]:
    """Returns the `true` and the `predicted` classes of rows by name."""
    if not self.multi_label:
      true, found = self.labels[rows], self.probabilities[rows].argmax(1)
      return {
        'true': np.array(names)[true],
        'predicted': np.array(names)[found],
      }

    def listed(flags):
      return ', '.join(itertools.compress(names, flags)) or 'none'

    both = {'true': self.labels > 0, 'predicted': self.chosen}
    return {
      k: np.array([listed(v[row]) for row in rows]) for k, v in both.items()
    }


class Calibration(NamedTuple):
  """Mean confidence, accuracy and images of each bin that holds any."""

  confidence: Float[np.ndarray, 'bins']
  accuracy: Float[np.ndarray, 'bins']
  count: Int[np.ndarray, 'bins']
  error: float  # the mean distance of the two over images: Guo et al., 2017


def calibration(
  probabilities: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> Calibration:
  """Returns the reliability of the first choices in BINS equal bins."""
  confidence = probabilities.max(1).astype(np.float64)
  right = probabilities.argmax(1) == labels
  place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
  count = np.bincount(place, minlength=BINS)
  held = count > 0
  sums = [np.bincount(place, x, BINS)[held] for x in (confidence, right)]
  error = float(np.abs(sums[0] - sums[1]).sum() / max(len(labels), 1))
  count = count[held]
  return Calibration(sums[0] / count, sums[1] / count, count, error)


def by_class(
  right: Int[np.ndarray, 'C'],
  true: Int[np.ndarray, 'C'],
  predicted: Int[np.ndarray, 'C'],
) -> list[tuple[int, float, float]]:
  """Returns images, precision and recall of each class, in [0, 1].

  NaN stands for the recall of a class without images, and for the precision of
  one that is never predicted.

  Args:
    right: images of the class that are predicted so.
    true: images of the class.
    predicted: images that are predicted to be of the class.
  """
  with np.errstate(invalid='ignore'):
    columns = true, right / predicted, right / true
  return list(zip(*(column.tolist() for column in columns), strict=True))


def confused(
  counts: Int[np.ndarray, 'C C'], names: list[str], most: int
) -> list[dict[str, Any]]:
  """Returns the pairs of classes confused most often."""
  wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
  order = np.argsort(wrong, axis=None, kind='stable')[::-1][:most]
  return [
    {
      'true': names[i],
      'predicted': names[j],
      'count': int(counts[i, j]),
      'part': float(counts[i, j] / counts[i].sum()),
    }
    for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)
    if wrong[i, j]
  ]


def loss_interval(
  probabilities: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> intervals.Interval | None:
  """Returns the interval of the mean cross-entropy over images."""
  true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
  return intervals.student(-np.log(np.maximum(true, 1e-30)))


def auroc_interval(
  probabilities: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> intervals.Interval | None:
  """Returns the interval of the macro AUROC, as DeLong et al., 1988, have it.

  Each image's part in the mean over classes is a sum of its ranks among the
  others; the spread of these parts gives the interval. None where an image's
  ranks take too long, or a class is missing.
  """
  count, classes = probabilities.shape
  sizes = np.bincount(labels, minlength=classes)
  if probabilities.size > _LARGE or not sizes.all() or classes < 2:
    return None
  parts, total = np.zeros(count), 0.0
  for c in range(classes):
    positive, column = labels == c, probabilities[:, c]
    own = np.empty(count)
    for same in (positive, ~positive):
      own[same] = scipy.stats.rankdata(column[same])
    below = scipy.stats.rankdata(column) - own  # of the other kind, ties half
    ones, zeros = sizes[c], count - sizes[c]
    above = np.where(positive, below / zeros, 1 - below / ones)
    area = above[positive].mean()
    parts += (above - area) / np.where(positive, ones, zeros) / classes
    total += area / classes
  half = scipy.stats.norm.ppf(0.975) * np.sqrt(np.square(parts).sum())
  return total - half, min(total + half, 1)
