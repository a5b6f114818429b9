"""Computes distances of two sets of features, in float64.

frechet(a, b)                          # FID
kernel(a.features, b.features)         # KID and its standard error
measure(a, b)                          # both, and the counts
extrapolate(a, b)                      # FID-infinity

>>> x = np.random.default_rng(0).standard_normal((64, 4))
>>> a, b = (statistics.Statistics.of(y) for y in (x, x + 3))
>>> round(frechet(a, b), 3)  # the means are 3 apart in each of 4 features
36.0
"""

import functools
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float
from sklearn.metrics import pairwise

from vit22b_jax import errors
from vit22b_jax.fid import statistics

_MIN_EXTRAPOLATED = 16  # images of each set, for FID-infinity
_EPS = np.finfo(np.float64).eps


def measure(
  a: statistics.Statistics,
  b: statistics.Statistics,
  *,
  num: str = 'all',
  kid_subsets: int = 100,
  kid_subset_size: int = 1000,
) -> dict[str, Any]:
  """Computes FID and KID; arguments are those of `select` and `kernel`.

  Returns:
    `fid kid kid_stderr num_a num_b`; the kernel distance is None where a set
    is known by its moments alone, its error also where `kernel` has none, a
    count where its file doesn't say.

  Raises:
    UserError: a set has fewer than 2 images, or the widths differ.
  """
  a, b = select(a, b, num)
  found = {'fid': frechet(a, b), 'kid': None, 'kid_stderr': None}
  if a.features is not None and b.features is not None:
    found['kid'], found['kid_stderr'] = kernel(
      a.features, b.features, subsets=kid_subsets, subset_size=kid_subset_size
    )
  return {**found, 'num_a': a.count, 'num_b': b.count}


def select(
  a: statistics.Statistics, b: statistics.Statistics, num: str
) -> tuple[statistics.Statistics, statistics.Statistics]:
  """Returns 'all' images, or of both sets the first 'min' (the fewer's number).

  The paper's Table 2 does the latter.
  """
  if num == 'all':
    return a, b
  if a.features is None or b.features is None:
    raise errors.UserError(
      "fid.num='min' takes as many images of both sets, which needs images: a "
      "statistics file has none, so use 'all'."
    )
  count = min(a.count, b.count)
  return tuple(statistics.Statistics.of(s.features[:count]) for s in (a, b))


def frechet(a: statistics.Statistics, b: statistics.Statistics) -> float:
  """Computes |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2).

  https://arxiv.org/abs/1706.08500, Eq. 6. Covariances of fewer images than
  features are singular; the trace is finite all the same, the distance large
  for lack of images, and a warning says so. What is below the rounding of the
  terms, as between equal sets, is 0.

  Raises:
    UserError: a set has fewer than 2 images, or the widths differ.
  """
  for name, s in (('a', a), ('b', b)):
    if s.count is not None and s.count < 2:
      raise errors.UserError(
        f'set {name} has {s.count} image(s): a distance needs 2 at least.'
      )
  width = len(a.mean)
  if width != len(b.mean):
    raise errors.UserError(
      f'set a has {width} features and set b {len(b.mean)}: they come from '
      'other taps of Inception.'
    )
  counts = [s.count for s in (a, b) if s.count is not None]
  if counts and min(counts) <= width:
    _warn_of_few(min(counts), width)
  return _frechet(a, b)


@functools.cache  # once, and not at every evaluation of a run
def _warn_of_few(count: int, width: int) -> None:
  logging.warning(
    '%d images for %d features: the Frechet distance is finite, but too large '
    'for lack of images. Compare it with distances of as many images alone; '
    'or use more images, a lower tap, or the kernel distance.',
    count,
    width,
  )


def _frechet(a: statistics.Statistics, b: statistics.Statistics) -> float:
  mean = np.square(a.mean - b.mean).sum()
  variance = np.trace(a.covariance) + np.trace(b.covariance)
  distance = float(mean + variance - 2 * _root_trace(a, b))
  rounding = len(a.mean) * _EPS * (variance + a.mean @ a.mean + b.mean @ b.mean)
  return distance if distance > rounding else 0.0


def _root_trace(a: statistics.Statistics, b: statistics.Statistics) -> float:
  """Computes tr (S_a S_b)^1/2, the sum of S_a S_b's eigenvalues' roots.

  With S = X^T X / (N - 1) these are the singular values of X_a X_b^T, which are
  few and exact when images are. Else they are those of S_a^1/2 S_b S_a^1/2,
  which is symmetric; eigenvalues that rounding alone makes are left out, since
  their roots would not be small.
  """
  counts = [len(s.features) for s in (a, b) if s.features is not None]
  if len(counts) == 2 and min(counts) < len(a.mean):
    x, y = (s.features - s.mean for s in (a, b))
    values = np.linalg.svd(x @ y.T, compute_uv=False)
    return values.sum() / np.sqrt((a.count - 1) * (b.count - 1))
  values, vectors = np.linalg.eigh(a.covariance)
  real = values > _noise(values)
  root = vectors[:, real] * np.sqrt(values[real])
  values = np.linalg.eigvalsh(root.T @ b.covariance @ root)
  return np.sqrt(values[values > _noise(values)]).sum()


def _noise(values: Float[np.ndarray, ' D']) -> float:
  """Returns what the rounding of a matrix may make of an eigenvalue 0."""
  return len(values) * _EPS * np.abs(values).max(initial=0)


def kernel(
  x: Float[np.ndarray, 'N D'],
  y: Float[np.ndarray, 'M D'],
  *,
  subsets: int = 100,
  subset_size: int = 1000,
) -> tuple[float, float | None]:
  """Computes the unbiased squared MMD of (x.y / D + 1)^3, and its error.

  KID, https://arxiv.org/abs/1801.01401. Sets no larger than `subset_size` are
  taken whole; else the mean over random subsets of as many images.

  Returns:
    The distance, and its standard error: by the jackknife for whole sets, from
    the spread over the subsets otherwise; None for sets of two images.
  """
  x, y = x.astype(np.float64), y.astype(np.float64)
  if max(len(x), len(y)) <= subset_size:
    return _whole(x, y)
  fewest = min(len(x), len(y))
  # Half of a set at most, or its choice would add nothing to the spread.
  size = max(2, min(subset_size, fewest // 2))
  rng = np.random.default_rng(0)
  values = []
  for _ in range(subsets):
    rows = rng.choice(len(x), size, replace=False)
    columns = rng.choice(len(y), size, replace=False)
    values.append(_mmd(*_sums(x[rows], y[columns])))
  if subsets < 2 or size >= fewest:
    return float(np.mean(values)), None
  # Subsets of a share r of a finite set vary by the factor 1 - r less than new
  # images would, and correlate by r: s^2 / (1 - r) (r + (1 - r) / K).
  odds = size / (fewest - size)
  error = np.sqrt(np.var(values, ddof=1) * (odds + 1 / subsets))
  return float(np.mean(values)), float(error)


def _whole(
  x: Float[np.ndarray, 'N D'], y: Float[np.ndarray, 'M D']
) -> tuple[float, float | None]:
  """Computes the distance of whole sets, and its jackknife error over both."""
  within_x, within_y, between = _sums(x, y)
  value = _mmd(within_x, within_y, between)
  n, m = between.shape
  if min(n, m) < 3:
    return value, None
  xx, yy = within_x.sum(), within_y.sum()
  cross = between.sum()
  # Each value as it would be without one row of x, and without one of y.
  terms = yy / (m * (m - 1))
  without_x = (xx - 2 * within_x) / ((n - 1) * (n - 2)) + terms
  without_x -= 2 * (cross - between.sum(axis=1)) / ((n - 1) * m)
  terms = xx / (n * (n - 1))
  without_y = (yy - 2 * within_y) / ((m - 1) * (m - 2)) + terms
  without_y -= 2 * (cross - between.sum(axis=0)) / (n * (m - 1))
  variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
  return value, float(np.sqrt(variance))


def _sums(
  x: Float[np.ndarray, 'N D'], y: Float[np.ndarray, 'M D']
) -> tuple[
  Float[np.ndarray, ' N'], Float[np.ndarray, ' M'], Float[np.ndarray, 'N M']
]:
  """Returns each row's kernel with the others of its set, and that between."""
  xx, yy, xy = (
    pairwise.polynomial_kernel(*pair) for pair in ((x, x), (y, y), (x, y))
  )
  return xx.sum(axis=1) - np.diag(xx), yy.sum(axis=1) - np.diag(yy), xy


def _mmd(
  within_x: Float[np.ndarray, ' N'],
  within_y: Float[np.ndarray, ' M'],
  between: Float[np.ndarray, 'N M'],
) -> float:
  n, m = between.shape
  within = within_x.sum() / (n * (n - 1)) + within_y.sum() / (m * (m - 1))
  return float(within - 2 * between.mean())


def extrapolate(
  a: statistics.Statistics, b: statistics.Statistics
) -> tuple[float, list[tuple[int, int, float]]]:
  """Computes FID-infinity, which the distance tends to as both sets grow.

  The bias falls as 1 / N (https://arxiv.org/abs/1911.07023), so a line through
  the distances of random parts of the sets, over 1 / N, ends there; at 0, where
  noise would take it below.

  Returns:
    The extrapolated distance, and (images of a, of b, distance) of each part,
    from a quarter of each set to the whole.

  Raises:
    UserError: features are missing, or fewer than 16 in a set.
  """
  for name, s in (('a', a), ('b', b)):
    if s.features is None or s.count < _MIN_EXTRAPOLATED:
      raise errors.UserError(
        f'FID-infinity needs the features of {_MIN_EXTRAPOLATED} images at '
        f'least of each set; set {name} has {s.count or "moments"} '
        f'{"with" if s.features is not None else "without"} features.'
      )
  rng = np.random.default_rng(0)
  # Each part holds the smaller ones: their differences are less of a lottery.
  shuffled = [rng.permutation(s.features) for s in (a, b)]
  rows = []
  for share in np.linspace(0.25, 1, 10):
    parts = [
      statistics.Statistics.of(x[: round(share * len(x))]) for x in shuffled
    ]
    rows.append((share, *(p.count for p in parts), _frechet(*parts)))
  share, _, _, value = np.array(rows).T
  _, intercept = np.polyfit(1 / share, value, 1)
  return max(float(intercept), 0.0), [(n, m, d) for _, n, m, d in rows]
