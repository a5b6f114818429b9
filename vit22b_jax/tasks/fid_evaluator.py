"""Measures image translations by FID and KID, by direction and in the mean.

evaluator = FidEvaluator(config, mesh, data, translate, untrained)
evaluator.validate(variables)            # fid kid fid_a2b fid_b2a ..., of val
result = evaluator.test(variables, run)  # the content of eval.json
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array
from ml_collections import ConfigDict

from vit22b_jax import errors
from vit22b_jax.data import catalog, splits
from vit22b_jax.fid import distances, extractor, image_sources, statistics
from vit22b_jax.runtime import distributed, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import evaluators

_MEASURES = ('fid', 'kid', 'kid_stderr')
_ROWS = 256  # images hashed at a time


class FidEvaluator(evaluators.Evaluator):
  """Measures distances between translations and what they should look like.

  `a2b` compares what gen_ab makes of the images of a part of domain a with the
  images of the same part of domain b.

  Args:
    mesh: devices that share the work.
    data: the two domains; None to translate alone.
    translate: (variables, images uint8, direction) -> float images in [0, 255].
    untrained: gives the variables that the run starts from.
  """

  best_metrics = ('val/fid',)
  best_mode = 'min'
  min_images = 20  # of either domain; a distance of fewer is mostly noise

  def __init__(
    self,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    data: catalog.Dataset | None,
    translate: Callable[[Any, Array, str], Array],
    untrained: Callable[[], dict[str, Any]],
  ):
    # As many as Inception takes at once: it would pad smaller batches.
    batch_size = config.eval.batch_size or config.fid.batch_size
    super().__init__(config, mesh, data, sharding.round_up(batch_size, mesh))
    self._section = config.fid
    self._paired = config.data.pairing == 'paired'
    self._translate, self._untrained = translate, untrained
    self.missing = '' if config.eval.fid else 'eval.fid=False'
    self._real: dict[tuple[str, str], statistics.Statistics] = {}

  def prepare(self) -> None:
    """Gets Inception's weights; without the public ones nothing is measured.

    Raises:
      UserError: `fid.weights` names others, and they can't be had.
    """
    try:
      if not self.missing:
        _ = self._extractor
    except errors.UserError as error:
      if self._section.weights:
        raise
      self.missing = "Inception's weights could not be had"
      logging.warning(
        '%s\nThe run trains without FID and KID, and its last checkpoint '
        'counts, so that eval.early_stop never acts. --config.eval.fid=False '
        'asks for that without this warning; --mode=eval measures them later.',
        error,
      )
    # What one process lacks, none can measure: they compute together.
    if any(distributed.gather(bool(self.missing))):
      self.missing = self.missing or 'another process lacks the weights'

  @functools.cached_property
  def _extractor(self) -> extractor.Extractor:
    settings = extractor.Settings.of(self._section)
    # More than an evaluation's batch would be padding.
    size = min(self._section.batch_size, self.batch_size)
    return extractor.Extractor(settings, size, self._mesh)

  @property
  def note(self) -> str:
    """Says of distances by other weights that they are uncalibrated."""
    calibrated = self._extractor.facts['calibrated']
    return '' if calibrated else ' (uncalibrated)'

  def made(
    self, variables: dict[str, Any], direction: str, part: str | None = None
  ) -> evaluators.Batches:
    """Yields what a generator makes of `last_part` or another, in [0, 255]."""
    source, _ = image_sources.DIRECTIONS[direction]
    for batch in self._batches(part or self.last_part, source):
      images = self._translate(variables, batch['image'], direction)
      yield {'image': images, 'mask': batch['mask']}

  def distances(
    self, variables: dict[str, Any] | None, part: str
  ) -> dict[str, float]:
    """Measures what generators make of a part; None changes nothing.

    Returns:
      `fid kid` and, of both, `_a2b` and `_b2a`, with `kid_stderr_a2b` and
      `kid_stderr_b2a`; means of the two directions without one's name; `num_a
      num_b`, the images of each domain that entered the distances.
    """
    values = {}
    for direction, (source, target) in image_sources.DIRECTIONS.items():
      real = self._statistics_of_real(part, target)
      if variables is None:
        made = self._statistics_of_real(part, source)
      else:
        batches = self.made(variables, direction, part)
        made = self._extractor.statistics(batches)
      found = distances.measure(
        made,
        real,
        num=self._section.num,
        kid_subsets=self._section.kid_subsets,
        kid_subset_size=self._section.kid_subset_size,
      )
      values |= {f'{name}_{direction}': found[name] for name in _MEASURES}
      values[f'num_{source}'] = found['num_a']
      values[f'num_{target}'] = found['num_b']
    return {name: _mean(values, name) for name in ('fid', 'kid')} | values

  def paired_l1(self, variables: dict[str, Any], part: str) -> dict[str, float]:
    """Computes mean |translation - other image of its pair|, in [-1, 1].

    Returns:
      `paired_l1_a2b`, `paired_l1_b2a` and their mean, `paired_l1`.
    """
    compare = jax.jit(_l1_sums, out_shardings=sharding.replicated(self._mesh))
    values = {}
    for direction, (_, target) in image_sources.DIRECTIONS.items():
      made = self.made(variables, direction, part)
      real = self._batches(part, target)
      pairs = zip(made, real, strict=True)
      total, count = sum(np.asarray(compare(*pair)) for pair in pairs)
      values[f'paired_l1_{direction}'] = float(total / count)
    return {'paired_l1': _mean(values, 'paired_l1')} | values

  def validate(self, variables: dict[str, Any]) -> dict[str, float]:
    """Returns `fid kid` of the val part, by direction and in the mean.

    Of pairs, `paired_l1` too. Where images are too few to rank checkpoints,
    `num_images` says so.
    """
    values = {
      name: value
      for name, value in self.distances(variables, 'val').items()
      if name.startswith(('fid', 'kid')) and 'stderr' not in name
    }
    if self._paired:
      values |= self.paired_l1(variables, 'val')
    images = min(len(self.data.val.a), len(self.data.val.b))
    if images < self.min_images:
      values['num_images'] = images
    return values

  def test(
    self, variables: dict[str, Any], run: workdir_lib.Workdir
  ) -> dict[str, Any]:
    """Evaluates on the test part, or on val where there is none.

    Returns:
      `split`; of pairs what `paired_l1` gives; distances and `num_a num_b` as
      `distances` gives them; distances of generators that change nothing
      (`identity_...`) and of those that the seed draws (`untrained_...`); and
      what the distances are to be reported with. Where they can't be measured,
      `not_computed` says why.
    """
    del run
    part = self.last_part
    pair = getattr(self.data, part)
    result = {'split': part, 'num_a': len(pair.a), 'num_b': len(pair.b)}
    if self._paired:
      result |= self.paired_l1(variables, part)
    if self.missing:
      return result | {'not_computed': self.missing}
    measured = {
      '': self.distances(variables, part),
      'identity_': self.distances(None, part),
      'untrained_': self.distances(self._untrained(), part),
    }
    result |= {key: measured[''].pop(key) for key in ('num_a', 'num_b')}
    for prefix, found in measured.items():
      result |= {f'{prefix}{name}': found[name] for name in measured['']}
    return result | self._extractor.facts

  @staticmethod
  def summary(result: dict[str, Any]) -> str:
    """Returns the content of eval.json in words."""
    lines = []
    if 'not_computed' in result:
      lines += [f'FID and KID were not computed: {result["not_computed"]}.']
    else:
      calibrated = '' if result['calibrated'] else ', uncalibrated'
      lines += [
        f'Result on the {result["split"]} part ({result["num_a"]} and '
        f'{result["num_b"]} images; weights of step {result["step"]}; tap '
        f'{result["tap"]}, {result["resize"]}, {result["quantize"]}'
        f'{calibrated}):'
      ]
      lines += [
        f'  {d}: FID {result[f"fid_{d}"]:.4g}, KID {result[f"kid_{d}"]:.4g} '
        '(FID of the untranslated images '
        f'{result[f"identity_fid_{d}"]:.4g}, of the untrained generator '
        f'{result[f"untrained_fid_{d}"]:.4g})'
        for d in image_sources.DIRECTIONS
      ]
    if 'paired_l1' in result:
      lines += [
        f'  L1 to the paired images, of values in [-1, 1]: a2b '
        f'{result["paired_l1_a2b"]:.4g}, b2a {result["paired_l1_b2a"]:.4g}'
      ]
    return '\n'.join(lines)

  def _batches(self, part: str, domain: str) -> evaluators.Batches:
    return self.batches(getattr(getattr(self.data, part), domain))

  def _statistics_of_real(
    self, part: str, domain: str
  ) -> statistics.Statistics:
    """Returns those of the images themselves, which are computed once."""
    if (part, domain) not in self._real:
      identity = _identity(getattr(getattr(self.data, part), domain))
      source = image_sources.Source(
        '', lambda _: self._batches(part, domain), str(identity), identity
      )
      self._real[part, domain] = source.statistics(self._extractor)
    return self._real[part, domain]


def _mean(values: dict[str, float], name: str) -> float:
  both = [values[f'{name}_{d}'] for d in image_sources.DIRECTIONS]
  return np.mean(both).item()


def _l1_sums(made: dict[str, Array], real: dict[str, Array]) -> Array:
  """Returns the sum of the images' mean |x - y|, and their number."""
  mask = made['mask'] * real['mask']
  difference = jnp.abs(made['image'] - real['image']) / 127.5
  return jnp.stack([difference.mean((1, 2, 3)) @ mask, mask.sum()])


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
