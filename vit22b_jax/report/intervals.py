"""95 % intervals of what several runs, or one test set, tell.

student([.81, .83, .82])          # of a mean over seeds
wilson(.81, 10_000)               # of one run's part of right answers
welch([.81, .83], [.85, .86])     # of the difference of two means
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95
_UPPER = (1 + LEVEL) / 2


class Interval(NamedTuple):
  low: float
  high: float

  @property
  def excludes_zero(self) -> bool:
    return self.low > 0 or self.high < 0


def student(values: Sequence[float]) -> Interval | None:
  """Of a mean: Student's t with n - 1 degrees of freedom.

  Returns:
    None for fewer than two values, for values that aren't finite, and for
    values that are all alike, which leave no spread to judge by.
  """
  count = len(values)
  if not _spread(values):
    return None
  half = special.stdtrit(count - 1, _UPPER) * np.std(values, ddof=1)
  mean = np.mean(values)
  half /= np.sqrt(count)
  return Interval(float(mean - half), float(mean + half))


def wilson(part: float, count: int) -> Interval:
  """Of a binomial part: Wilson, 1927, whose ends stay within [0, 1].

  Args:
    part: of `count` answers that are right, in [0, 1].
    count: independent answers, at least 1.
  """
  z = special.ndtri(_UPPER)
  shrink = 1 + z * z / count
  middle = (part + z * z / (2 * count)) / shrink
  variance = part * (1 - part) / count + (z / (2 * count)) ** 2
  half = z * np.sqrt(variance) / shrink
  return Interval(float(max(middle - half, 0)), float(min(middle + half, 1)))


def welch(
  base: Sequence[float], other: Sequence[float]
) -> tuple[float, Interval | None]:
  """mean(other) - mean(base): Welch, 1947, for variances that may differ.

  Returns:
    The difference, and its interval: None where either has fewer than two
    values or one that isn't finite, or neither has any spread.
  """
  difference = float(np.mean(other) - np.mean(base))
  sizes = len(base), len(other)
  if min(sizes) < 2 or not (_spread(base) or _spread(other)):
    return difference, None
  squares = [
    np.var(v, ddof=1) / n for v, n in zip((base, other), sizes, strict=True)
  ]
  if not np.isfinite(squares).all():
    return difference, None
  parts = [s * s / (n - 1) for s, n in zip(squares, sizes, strict=True)]
  freedom = sum(squares) ** 2 / sum(parts)
  half = special.stdtrit(freedom, _UPPER) * np.sqrt(sum(squares))
  return difference, Interval(
    float(difference - half), float(difference + half)
  )


def _spread(values: Sequence[float]) -> bool:
  """Whether there are two finite values or more, which differ."""
  return len(values) > 1 and 0 < np.ptp(values) < np.inf
