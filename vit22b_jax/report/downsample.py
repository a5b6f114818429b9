"""Reduces long series to few points in a way that keeps every spike visible.

>>> values = np.zeros(1000)
>>> values[617] = 5.0
>>> kept = envelope(values, buckets=10)
>>> len(kept) < 32 and 617 in kept
True
"""

import itertools

import numpy as np
from jaxtyping import Float, Int


def envelope(
  values: Float[np.ndarray, 'rows'], buckets: int
) -> Int[np.ndarray, 'kept']:
  """Returns the rows to draw of values, which may be NaN and infinite.

  They are sorted, the first and the last among them: the smallest, the largest
  and the first non-finite of each of `buckets` slices. Short series stay whole.
  """
  rows = len(values)
  if rows <= 3 * buckets:
    return np.arange(rows)
  finite = np.isfinite(values)
  low = np.where(finite, values, np.inf)
  high = np.where(finite, values, -np.inf)
  keep = {0, rows - 1}
  edges = np.linspace(0, rows, buckets + 1).astype(int)
  for start, stop in itertools.pairwise(edges):
    part = slice(start, stop)
    if finite[part].any():
      keep |= {start + low[part].argmin(), start + high[part].argmax()}
    if not finite[part].all():
      keep.add(start + finite[part].argmin())
  return np.array(sorted(keep), np.int64)


def buckets(
  values: Float[np.ndarray, 'depth rows'], count: int, reduce: str
) -> tuple[Int[np.ndarray, 'buckets'], Float[np.ndarray, 'depth buckets']]:
  """Returns at most `count` slices of the rows: first rows and extremes.

  Each layer's extreme is the slice's 'max' or 'min', as `reduce` says; NaN
  where a value isn't finite, because that is what must stay visible.
  """
  rows = values.shape[1]
  starts = np.unique(np.linspace(0, rows, count, endpoint=False).astype(int))
  finite = np.isfinite(values)
  ufunc = {'max': np.maximum, 'min': np.minimum}[reduce]
  extremes = ufunc.reduceat(np.where(finite, values, 0.0), starts, axis=1)
  whole = np.logical_and.reduceat(finite, starts, axis=1)
  return starts, np.where(whole, extremes, np.nan)
