"""Computes 95 % intervals over seeds, or over the images of a test set.

student([.81, .83, .82])          # of a mean over seeds
wilson(.81, 10_000)               # of one run's part of right answers
welch([.81, .83], [.85, .86])     # of the difference of two means
"""

from collections.abc import Sequence

import numpy as np
import scipy  # loads scipy.stats once it is used

Interval = tuple[float, float]  # low, high


def student(values: Sequence[float]) -> Interval | None:
  """Returns the interval of a mean; None where no spread is to judge by."""
  if not _spread(values):
    return None
  return scipy.stats.ttest_1samp(values, 0).confidence_interval()


def wilson(part: float, count: int) -> Interval | None:
  """Returns the interval of a part in [0, 1] of `count`: Wilson, 1927."""
  if not (0 <= part <= 1 and count):
    return None
  test = scipy.stats.binomtest(round(part * count), count)
  return test.proportion_ci(method='wilson')


def welch(
  base: Sequence[float], other: Sequence[float]
) -> tuple[float, Interval | None]:
  """Returns mean(other) - mean(base) and its interval: Welch, 1947.

  The interval is None where either has fewer than two values or one that isn't
  finite, or neither has any spread.
  """
  difference = float(np.mean(other) - np.mean(base))
  several = min(len(base), len(other)) > 1
  finite = np.isfinite([*base, *other]).all()
  if not (several and finite and (_spread(base) or _spread(other))):
    return difference, None
  test = scipy.stats.ttest_ind(other, base, equal_var=False)
  return difference, test.confidence_interval()


def _spread(values: Sequence[float]) -> bool:
  """Returns whether there are two finite values or more, which differ."""
  return len(values) > 1 and 0 < np.ptp(values) < np.inf
