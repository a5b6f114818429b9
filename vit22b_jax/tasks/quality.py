"""FID and KID of translations, by direction and in the mean.

    quality = Quality(config.fid, mesh, batches, translated)
    quality.of(variables, data.val)      # fid_a2b fid_b2a ... fid kid
    quality.identity(data.test)          # the anchor: nothing translated at all

`a2b` compares what gen_ab makes of the images of a part of domain a with the
images of the same part of domain b.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Shaped

from vit22b_jax import fid
from vit22b_jax.data import catalog, splits
from vit22b_jax.fid import distances, image_sources

_MEASURES = ('fid', 'kid', 'kid_stderr')
_ROWS = 256  # images hashed at a time

# {'image': [B, H, W, 3] in [0, 255], 'mask': [B]}
Batches = Iterator[dict[str, Shaped[Array, 'B ...']]]


class Quality:
  """Distances between translations and the domain that they should be of.

  Args:
    section: the config's `fid` section.
    mesh: devices that share the work.
    batches: gives every image of a split, once.
    translated: (variables, images, direction) -> float images in [0, 255].
  """

  def __init__(
    self,
    section: Any,
    mesh: jax.sharding.Mesh,
    batches: Callable[[splits.Split], Batches],
    translated: Callable[..., Array],
  ):
    self._section = section
    self._mesh = mesh
    self._batches = batches
    self._translated = translated
    self._known: dict[int, tuple[catalog.Pair, dict[str, fid.Statistics]]] = {}

  @functools.cached_property
  def _extractor(self) -> fid.Extractor:
    section = self._section
    return fid.Extractor(
      fid.Settings.of(section), section.batch_size, self._mesh
    )

  def load_weights(self) -> None:
    """Gets Inception's weights now, where they would be got when needed.

    Raises:
      UserError: they can't be had, or a setting doesn't exist.
    """
    _ = self._extractor

  @property
  def facts(self) -> dict[str, Any]:
    """What a distance has to be reported with."""
    return self._extractor.facts()

  def of(
    self,
    variables: dict[str, Any],
    pair: catalog.Pair,
    check: Callable[[], None] = lambda: None,
  ) -> dict[str, float]:
    """Distances of what generators make.

    Args:
      variables: the generators' parameters.
      pair: a part of both domains.
      check: called between batches; may raise to leave the evaluation.

    Returns:
      `fid kid` and, of both, `_a2b` and `_b2a`, with `kid_stderr_a2b` and
      `kid_stderr_b2a`; means of the two directions without one's name; `num_a
      num_b`, the images of each domain that entered the distances.
    """
    real, values = self._real_statistics(pair, check), {}
    for direction, (source, target) in image_sources.DIRECTIONS.items():
      made = self._statistics(
        {'image': self._translated(variables, batch['image'], direction)}
        | {'mask': batch['mask']}
        for batch in self._checked(getattr(pair, source), check)
      )
      values |= self._between(made, real[target], direction)
    return self._with_means(values)

  def identity(
    self, pair: catalog.Pair, check: Callable[[], None] = lambda: None
  ) -> dict[str, float]:
    """As `of`, for generators that change nothing."""
    real, values = self._real_statistics(pair, check), {}
    for direction, (source, target) in image_sources.DIRECTIONS.items():
      values |= self._between(real[source], real[target], direction)
    return self._with_means(values)

  def _real_statistics(self, pair, check):
    """Of both domains; computed once, since they stay as they are."""
    if id(pair) not in self._known:
      found = {
        domain: self._real(getattr(pair, domain), check) for domain in 'ab'
      }
      self._known[id(pair)] = pair, found  # holds the pair, so ids stay apart
    return self._known[id(pair)][1]

  def _real(self, split, check):
    """Of the images themselves, from the cache if they were met before."""
    identity = _identity(split)
    return self._extractor.cached_statistics(
      str(identity),
      identity,
      lambda: self._checked(split, check),
    )

  def _checked(self, split, check):
    for batch in self._batches(split):
      check()
      yield batch

  def _statistics(self, batches: Batches) -> fid.Statistics:
    return self._extractor.statistics(batches)

  def _between(self, made, real, direction):
    section = self._section
    found = distances.measure(
      made,
      real,
      num=section.num,
      kid_subsets=section.kid_subsets,
      kid_subset_size=section.kid_subset_size,
    )
    values = {f'{name}_{direction}': found[name] for name in _MEASURES}
    made_of, compared_with = image_sources.DIRECTIONS[direction]
    counts = {f'num_{made_of}': found['num_a']}
    return values | counts | {f'num_{compared_with}': found['num_b']}

  @staticmethod
  def _with_means(values):
    means = {
      name: np.mean(
        [values[f'{name}_{d}'] for d in image_sources.DIRECTIONS]
      ).item()
      for name in ('fid', 'kid')
    }
    return means | values


def _identity(split: splits.Split) -> str | None:
  """A hash of all images; None where they would have to be decoded for it."""
  if split.decodes:
    return None
  found = hashlib.sha256()
  for start in range(0, len(split), _ROWS):
    rows = np.arange(start, min(start + _ROWS, len(split)))
    images = split.gather(rows)['image']
    found.update(repr(images.shape).encode() + images.tobytes())
  return found.hexdigest()
