"""Measures image translations by FID and KID, by direction and in the mean.

evaluator = FidEvaluator(config.fid, mesh, data, translate, untrained, ...)
dict(evaluator.validate(variables))      # fid kid fid_a2b fid_b2a ..., of val
result = evaluator.test(variables, run)  # the content of eval.json
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array
from ml_collections import ConfigDict

from vit22b_jax import errors, fid
from vit22b_jax.data import catalog, splits
from vit22b_jax.fid import distances, image_sources
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import evaluators

_MEASURES = ('fid', 'kid', 'kid_stderr')
_ROWS = 256  # images hashed at a time


class FidEvaluator(evaluators.Evaluator):
  """Measures distances between translations and what they should look like.

  `a2b` compares what gen_ab makes of the images of a part of domain a with the
  images of the same part of domain b.

  Args:
    section: the config's `fid` section.
    mesh: devices that share the work.
    data: the two domains; None to translate alone.
    translate: (variables, images uint8, direction) -> float images in [0, 255].
    untrained: gives the variables that the run starts from.
    enabled: whether anything is measured.
    batch_size: images that are translated at once, over all processes.
    workers: processes that decode.

  Raises:
    UserError: the devices don't divide `batch_size`.
  """

  best_metric = 'val/fid'
  best_mode = 'min'
  min_images = 20  # of either domain; a distance of fewer is mostly noise

  def __init__(
    self,
    section: ConfigDict,
    mesh: jax.sharding.Mesh,
    data: catalog.Dataset | None,
    translate: Callable[[Any, Array, str], Array],
    untrained: Callable[[], dict[str, Any]],
    *,
    enabled: bool = True,
    batch_size: int,
    workers: int,
  ):
    super().__init__(data)
    self._section, self._mesh = section, mesh
    self._translate, self._untrained = translate, untrained
    self.batch_size, self._workers = batch_size, workers
    self.missing = '' if enabled else 'eval.fid=False'
    self._extractor: fid.Extractor | None = None
    self._real: dict[tuple[str, str], fid.Statistics] = {}

  def prepare(self) -> None:
    """Gets Inception's weights; without the public ones nothing is measured.

    Raises:
      UserError: `fid.weights` names others, and they can't be had.
    """
    try:
      if not self.missing:
        self._load_weights()
    except errors.UserError as error:
      if self._section.weights:
        raise
      self.missing = "Inception's weights could not be had"
      logging.warning(
        '%s\nThe run trains without FID and KID, and its last checkpoint '
        'counts. --config.eval.fid=False asks for that without this warning; '
        '--mode=eval measures them later.',
        error,
      )

  def _load_weights(self) -> None:
    if self._extractor is None:
      self._extractor = fid.Extractor(
        fid.Settings.of(self._section), self._section.batch_size, self._mesh
      )

  @property
  def note(self) -> str:
    """Says of distances by other weights that they are uncalibrated."""
    return '' if self._extractor.calibrated else ' (uncalibrated)'

  def made(
    self,
    variables: dict[str, Any],
    direction: str,
    part: str | None = None,
    poll: evaluators.Poll = evaluators.ignore,
  ) -> evaluators.Batches:
    """Yields what a generator makes of a part: float images in [0, 255].

    Args:
      variables: the generators' parameters.
      direction: 'a2b' or 'b2a'.
      part: of the data; `last_part` by default.
      poll: see `Evaluator`.
    """
    part = part or self.last_part
    source, _ = image_sources.DIRECTIONS[direction]
    for batch in self._batches(part, source, poll):
      images = self._translate(variables, batch['image'], direction)
      yield {'image': images, 'mask': batch['mask']}

  def distances(
    self,
    variables: dict[str, Any],
    part: str,
    poll: evaluators.Poll = evaluators.ignore,
  ) -> dict[str, float]:
    """Measures what generators make of a part.

    Returns:
      `fid kid` and, of both, `_a2b` and `_b2a`, with `kid_stderr_a2b` and
      `kid_stderr_b2a`; means of the two directions without one's name; `num_a
      num_b`, the images of each domain that entered the distances.
    """
    self._load_weights()
    values = {}
    for direction, (_, target) in image_sources.DIRECTIONS.items():
      real = self._statistics_of_real(part, target, poll)
      made = self._extractor.statistics(
        self.made(variables, direction, part, poll)
      )
      values |= self._between(made, real, direction)
    return _with_means(values)

  def identity(
    self, part: str, poll: evaluators.Poll = evaluators.ignore
  ) -> dict[str, float]:
    """Measures as `distances` does, for generators that change nothing."""
    self._load_weights()
    values = {}
    for direction, sides in image_sources.DIRECTIONS.items():
      real = (self._statistics_of_real(part, side, poll) for side in sides)
      values |= self._between(*real, direction)
    return _with_means(values)

  def validate(
    self, variables: dict[str, Any], poll: evaluators.Poll = evaluators.ignore
  ) -> Iterable[tuple[str, float]]:
    """Yields `fid kid` of the val part, by direction and in the mean.

    Where they are too few to rank checkpoints, `num_images` says so.
    """
    for name, value in self.distances(variables, 'val', poll).items():
      if name.startswith(('fid', 'kid')) and 'stderr' not in name:
        yield name, value
    images = min(len(self.data.val.a), len(self.data.val.b))
    if images < self.min_images:
      yield 'num_images', images

  def test(
    self,
    variables: dict[str, Any],
    run: workdir_lib.Workdir,
    poll: evaluators.Poll = evaluators.ignore,
  ) -> dict[str, Any]:
    """Evaluates on the test part, or on val where there is none.

    Returns:
      `split`; distances and `num_a num_b` as `distances` gives them; distances
      of generators that change nothing (`identity_...`) and of those that the
      seed draws (`untrained_...`); and what the distances are to be reported
      with. Where nothing can be measured, `not_computed` says why.
    """
    del run
    part = self.last_part
    if self.missing:
      pair = getattr(self.data, part)
      counts = {'num_a': len(pair.a), 'num_b': len(pair.b)}
      return {'split': part, **counts, 'not_computed': self.missing}
    anchors = {
      'identity': self.identity(part, poll),
      'untrained': self.distances(self._untrained(), part, poll),
    }
    found = self.distances(variables, part, poll)
    counts = {key: found.pop(key) for key in ('num_a', 'num_b')}
    return {
      'split': part,
      **counts,
      **found,
      **{f'{k}_{n}': x[n] for k, x in anchors.items() for n in found},
      **self._extractor.facts(),
    }

  @staticmethod
  def summary(result: dict[str, Any]) -> str:
    """Returns the content of eval.json in words."""
    if 'not_computed' in result:
      return f'FID and KID were not computed: {result["not_computed"]}.'
    calibrated = '' if result['calibrated'] else ', uncalibrated'
    lines = [
      f'Result on the {result["split"]} part ({result["num_a"]} and '
      f'{result["num_b"]} images; weights of step {result["step"]}; tap '
      f'{result["tap"]}, {result["resize"]}, {result["quantize"]}'
      f'{calibrated}):'
    ]
    for direction in image_sources.DIRECTIONS:
      fid_, identity, untrained = (
        result[f'{prefix}fid_{direction}']
        for prefix in ('', 'identity_', 'untrained_')
      )
      kid = result[f'kid_{direction}']
      lines.append(
        f'  {direction}: FID {fid_:.4g}, KID {kid:.4g} (FID of the '
        f'untranslated images {identity:.4g}, of the untrained generator '
        f'{untrained:.4g})'
      )
    return '\n'.join(lines)

  def _batches(
    self, part: str, domain: str, poll: evaluators.Poll
  ) -> evaluators.Batches:
    """Yields every image of a domain's part, once, on the devices."""
    split = getattr(getattr(self.data, part), domain)
    for batch in evaluators.eval_batches(
      split, self._mesh, self.batch_size, self._workers
    ):
      poll()
      yield batch

  def _statistics_of_real(
    self, part: str, domain: str, poll: evaluators.Poll
  ) -> fid.Statistics:
    """Returns those of the images themselves, which are computed once."""
    if (part, domain) not in self._real:
      identity = _identity(getattr(getattr(self.data, part), domain))
      self._real[part, domain] = self._extractor.cached_statistics(
        str(identity),
        identity,
        lambda: self._batches(part, domain, poll),
      )
    return self._real[part, domain]

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
    source, target = image_sources.DIRECTIONS[direction]
    counts = {f'num_{source}': found['num_a'], f'num_{target}': found['num_b']}
    return values | counts


def _with_means(values: dict[str, float]) -> dict[str, float]:
  means = {
    name: np.mean(
      [values[f'{name}_{d}'] for d in image_sources.DIRECTIONS]
    ).item()
    for name in ('fid', 'kid')
  }
  return means | values


def _identity(split: splits.Split) -> str | None:
  """Hashes all images; None where they would have to be decoded for it."""
  if split.decodes:
    return None
  found = hashlib.sha256()
  for start in range(0, len(split), _ROWS):
    rows = np.arange(start, min(start + _ROWS, len(split)))
    images = split.gather(rows)['image']
    found.update(repr(images.shape).encode() + images.tobytes())
  return found.hexdigest()
