"""Mean and covariance of features: all that a Frechet distance knows of a set.

statistics = Statistics.of(features)
statistics.mean, statistics.covariance
Statistics.load('photos.npz')     # of pytorch-fid, or of `to_bytes`

>>> found = Statistics.of(np.arange(12).reshape(6, 2))
>>> found.count, found.mean.tolist(), found.covariance[0, 1].item()
(6, [5.0, 6.0], 14.0)
"""

import dataclasses
import io
import json
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.runtime import formats

_FACTS = 'facts'
_MAX_BYTES = 2**30  # of a statistics file: 16 times what tap 2048 needs
# How far rounding to float32 may take a covariance from what it should be.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
  """Holds mean and unbiased covariance of a set of images, float64.

  Attributes:
    count: of images; None when a file doesn't say.
    features: of the images in order, float32; a file has none.
    facts: how they were computed (tap, resize, ...), JSON-able; {} if unknown.
  """

  mean: Float[np.ndarray, ' D']
  covariance: Float[np.ndarray, 'D D']
  count: int | None
  features: Float[np.ndarray, 'N D'] | None = None
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(
    cls, features: Float[np.ndarray, 'N D'], facts: dict[str, Any] | None = None
  ) -> 'Statistics':
    """Takes features as float32; moments of fewer than two images are zeros.

    Raises:
      UserError: a feature isn't finite.
    """
    x = np.asarray(features, np.float32)
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
      raise errors.UserError(
        f'{bad.sum()} of {len(x)} images have features that are NaN or '
        'infinite: the images themselves are (a generator that diverged?), or '
        'the weights are damaged.'
      )
    mean = x.sum(axis=0, dtype=np.float64) / max(len(x), 1)
    centered = x - mean
    covariance = centered.T @ centered / max(len(x) - 1, 1)
    return cls(mean, covariance, len(x), x, facts or {})

  @classmethod
  def load(cls, path: epath.PathLike, width: int | None = None) -> 'Statistics':
    """Reads an `.npz` with `mu` [D] and `sigma` [D, D], such as pytorch-fid's.

    Raises:
      UserError: missing, damaged, no moments of anything, or of another number
        of features than `width`.
    """
    path = epath.Path(path)
    if not files.is_file(path):
      raise errors.UserError(f'There is no statistics file {path}.')
    arrays = formats.read_npz(path, _MAX_BYTES)
    missing = {'mu', 'sigma'} - arrays.keys()
    if missing:
      raise errors.UserError(
        f"{path} holds {', '.join(arrays) or 'nothing'}; expected 'mu' and "
        "'sigma', as pytorch-fid's --save-stats writes them."
      )
    mean, covariance = arrays['mu'], arrays['sigma']
    _validate_moments(path, mean, covariance)
    if width is not None and len(mean) != width:
      raise errors.UserError(
        f'{path} has statistics of {len(mean)} features, expected {width}: '
        'they belong to another tap of Inception; set fid.tap to '
        f'{len(mean)} or make them anew.'
      )
    wide = (x.astype(np.float64) for x in (mean, covariance))
    count, facts = _read_facts(path, arrays.get(_FACTS))
    return cls(*wide, count, facts=facts)


def to_bytes(statistics: Statistics) -> bytes:
  """Returns an `.npz` file for `Statistics.load`, pytorch-fid and clean-fid.

  The others ignore its facts.
  """
  out = io.BytesIO()
  text = json.dumps(statistics.facts | {'count': statistics.count})
  moments = {'mu': statistics.mean, 'sigma': statistics.covariance}
  np.savez(out, **moments, **{_FACTS: text})
  return out.getvalue()


def _validate_moments(
  path: epath.Path, mean: np.ndarray, covariance: np.ndarray
) -> None:
  """Raises UserError for what no features have as mean and covariance."""
  if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
    raise errors.UserError(
      f'{path}: mu has shape {list(mean.shape)} and sigma '
      f'{list(covariance.shape)}; expected [D] and [D, D].'
    )
  for name, array in (('mu', mean), ('sigma', covariance)):
    if array.dtype.kind not in 'fiu':
      raise errors.UserError(
        f'{path}: {name} is of type {array.dtype}; expected real numbers.'
      )
    if not np.isfinite(array).all():
      raise errors.UserError(f'{path}: {name} has NaN or infinite values.')
  wide = covariance.astype(np.float64)
  largest = np.abs(wide).max(initial=0)
  if np.abs(wide - wide.T).max(initial=0) > _ROUNDING * largest:
    raise errors.UserError(
      f'{path}: sigma is not symmetric, as a covariance is; make it anew.'
    )
  values = np.linalg.eigvalsh(wide) if len(wide) else np.zeros(1)
  if values[0] < -_ROUNDING * max(values[-1], 0):
    raise errors.UserError(
      f'{path}: sigma has the negative eigenvalue {values[0]:.3g}, as no '
      'covariance has; make it anew.'
    )


def _read_facts(
  path: epath.Path, array: np.ndarray | None
) -> tuple[int | None, dict[str, Any]]:
  """Returns the count of images and the facts of a file of `to_bytes`."""
  if array is None:
    return None, {}
  try:
    facts = json.loads(str(array))
    count = facts.pop('count')
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise errors.UserError(
      f'{path}: {_FACTS} is not what `save_statistics` writes ({error!r}); '
      'make the file anew.'
    ) from error
  if not (count is None or (type(count) is int and count >= 2)):
    raise errors.UserError(
      f'{path}: expected a count of 2 images at least, found {count!r}.'
    )
  if 'quantise' in facts:  # as it was spelled before
    facts['quantize'] = facts.pop('quantise')
    if facts.get('resize') == 'torch':
      raise errors.UserError(
        f"{path} was made when fid.resize=torch had not pytorch-fid's range of "
        'inputs yet; make it anew.'
      )
  return count, facts
