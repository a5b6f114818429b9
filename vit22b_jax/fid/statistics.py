"""Count, sum and outer product of features: what a set of images comes to.

    statistics = Statistics.of(features) + Statistics.of(more_features)
    statistics.mean, statistics.covariance
    Moments.load('photos.npz')        # of pytorch-fid, or of `to_bytes`

    >>> x = np.arange(12.0).reshape(6, 2)
    >>> parts = Statistics.of(x[:4]) + Statistics.of(x[4:])
    >>> parts.count, parts.mean.tolist(), parts.covariance[0, 1].item()
    (6, [5.0, 6.0], 14.0)

Everything is float64 on the host. Sums merge (`+`) in any grouping, over
batches, devices and processes, so the batch size is of no consequence.
"""

import dataclasses
import functools
import io
import json
import zipfile
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from vit22b_jax import errors

_FACTS = 'facts'


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
  """Streaming moments of features.

  Attributes:
    count: of images.
    total: sum of their features, float64.
    outer: sum of the outer products x x^T, float64.
    features: the features themselves in order, float32, which the kernel
      distance needs; None where they were not kept.
  """

  count: int
  total: Float[np.ndarray, ' D']
  outer: Float[np.ndarray, 'D D']
  features: Float[np.ndarray, 'N D'] | None

  @classmethod
  def of(
    cls,
    features: Float[np.ndarray, 'N D'],
    mask: Bool[np.ndarray, ' N'] | None = None,
    *,
    keep_features: bool = True,
  ) -> 'Statistics':
    """The statistics of some features.

    Args:
      features: finite.
      mask: zero for rows that are padding; all count by default.
      keep_features: whether `features` is kept.

    Raises:
      UserError: a feature isn't finite.
    """
    x = np.asarray(features, np.float32)
    if mask is not None:
      x = x[np.asarray(mask) > 0]
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
      raise errors.UserError(
        f'{bad.sum()} of {len(x)} images have features that are NaN or '
        'infinite: the images themselves are (a generator that diverged?), or '
        'the weights are damaged.'
      )
    wide = x.astype(np.float64)
    kept = x if keep_features else None
    return cls(len(x), wide.sum(axis=0), wide.T @ wide, kept)

  def __add__(self, other: 'Statistics') -> 'Statistics':
    """The statistics of both sets of images together."""
    features = None
    if self.features is not None and other.features is not None:
      features = np.concatenate([self.features, other.features])
    return Statistics(
      self.count + other.count,
      self.total + other.total,
      self.outer + other.outer,
      features,
    )

  def first(self, count: int) -> 'Statistics':
    """The statistics of the first `count` images; needs `features`."""
    if count >= self.count:
      return self
    if self.features is None:
      raise errors.UserError(
        f'the first {count} of {self.count} images need the features of each, '
        'and only sums were kept.'
      )
    return Statistics.of(self.features[:count])

  @property
  def mean(self) -> Float[np.ndarray, ' D']:
    """Of each feature."""
    return self.total / self.count

  @functools.cached_property
  def covariance(self) -> Float[np.ndarray, 'D D']:
    """Unbiased; needs two images."""
    centred = self.outer - np.outer(self.total, self.mean)
    return centred / (self.count - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
  """Mean and covariance alone, as a file holds them.

  Attributes:
    mean: of each feature, float64.
    covariance: unbiased, float64.
    count: of images; None when the file doesn't say.
    facts: what `to_bytes` was given (tap, resize, ...); empty for others'.
  """

  mean: Float[np.ndarray, ' D']
  covariance: Float[np.ndarray, 'D D']
  count: int | None
  facts: dict[str, Any]
  features: None = None

  @classmethod
  def load(cls, path: epath.PathLike, width: int | None = None) -> 'Moments':
    """Reads an `.npz` with `mu` [D] and `sigma` [D, D], such as pytorch-fid's.

    Args:
      path: of the file.
      width: how many features are expected; None takes any.

    Raises:
      UserError: missing, damaged, other dimensions, or not finite.
    """
    path = epath.Path(path)
    if not path.is_file():
      raise errors.UserError(f'There is no statistics file {path}.')
    try:
      with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
      raise errors.UserError(
        f'{path} is damaged, or no .npz file of arrays: {error}'
      ) from error
    mean, covariance = _moments(arrays, path)
    if width is not None and len(mean) != width:
      raise errors.UserError(
        f'{path} has statistics of {len(mean)} features, expected {width}: '
        'they belong to another tap of Inception; set fid.tap to '
        f'{len(mean)} or make them anew.'
      )
    facts = json.loads(str(arrays[_FACTS])) if _FACTS in arrays else {}
    count = facts.pop('count', None)
    return cls(mean, covariance, count, facts)


AnyStatistics = Statistics | Moments


def to_bytes(statistics: AnyStatistics, facts: dict[str, Any]) -> bytes:
  """An `.npz` file for `Moments.load`, pytorch-fid and clean-fid.

  Args:
    statistics: of the images; `mu` and `sigma` of the file.
    facts: how they were computed; JSON-able; others ignore them.
  """
  out = io.BytesIO()
  np.savez(
    out,
    mu=statistics.mean,
    sigma=statistics.covariance,
    **{_FACTS: json.dumps(facts | {'count': statistics.count})},
  )
  return out.getvalue()


def _moments(
  arrays: dict[str, np.ndarray], path: epath.Path
) -> tuple[Float[np.ndarray, ' D'], Float[np.ndarray, 'D D']]:
  """`mu` and `sigma`, judged."""
  if not {'mu', 'sigma'} <= arrays.keys():
    raise errors.UserError(
      f"{path} holds {', '.join(arrays) or 'nothing'}; expected 'mu' and "
      "'sigma', as pytorch-fid's --save-stats writes them."
    )
  mean, covariance = arrays['mu'], arrays['sigma']
  if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
    raise errors.UserError(
      f'{path}: mu has shape {list(mean.shape)} and sigma '
      f'{list(covariance.shape)}; expected [D] and [D, D].'
    )
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise errors.UserError(f'{path} holds NaN or infinite statistics.')
  return mean.astype(np.float64), covariance.astype(np.float64)
