"""`--mode=fid`: the distances of any two sets of images, as fid.json.

python main.py --mode=fid --config=configs/fid.py --config.a=X --config.b=Y
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vit22b_jax import errors
from vit22b_jax.fid import (
  cached,
  distance,
  extractor,
  sources,
  statistics,
  weights,
)
from vit22b_jax.runtime import console
from vit22b_jax.runtime import workdir as workdir_lib

RESULT = 'fid.json'
KEYS = (
  *('fid', 'kid', 'kid_stderr', 'tap', 'resize', 'quantise', 'num_a', 'num_b'),
  *('weights_sha256', 'calibrated', 'fid_infinity', 'seconds'),
)
# What a statistics file has to say for a distance to be comparable.
_FACTS = ('resize', 'quantise', 'weights_sha256')
_LEAST = {'batch_size': 1, 'kid_subsets': 2, 'kid_subset_size': 2}


def run(
  config: Any,
  workdir: str | None,
  open_generator: Callable[[str, str], sources.Batches],
) -> dict[str, Any]:
  """Compares two sets, prints the distances and writes them.

  Args:
    config: of configs/fid.py.
    workdir: folder for fid.json (and, on request, a.npz and b.npz); None
      writes nothing.
    open_generator: (workdir, direction) -> batches {'image', 'mask'} of what a
      run's generator makes of its test part; float in [0, 255] or uint8.

  Returns:
    The content of fid.json: `fid kid kid_stderr tap resize quantise num_a num_b
    weights_sha256 calibrated seconds`, and `fid_infinity` when asked for.

  Raises:
    UserError: a mistake in the config, or in the sets.
  """
  start = time.monotonic()
  settings = check(config)
  opened = {
    side: _open(config, side, settings, open_generator) for side in ('a', 'b')
  }
  facts, made_by, found = _measure(config, settings, opened)
  a, b = distance.choose(found['a'], found['b'], config.fid.num)
  result = distance.distances(
    a,
    b,
    kid_subsets=config.fid.kid_subsets,
    kid_subset_size=config.fid.kid_subset_size,
  )
  result |= facts
  if config.infinity:
    result['fid_infinity'], sweep = distance.extrapolated(a, b)
    for num_a, num_b, value in sweep:
      console.say(f'  {num_a} and {num_b} images: FID {value:.6g}')
  result['seconds'] = round(time.monotonic() - start, 2)
  result = {key: result[key] for key in KEYS if key in result}
  console.say(summary(config.a, config.b, result))
  if workdir is not None:
    _write(config, workdir, result, made_by, found)
  return result


def check(config: Any) -> extractor.Settings:
  """Judges the config before anything is read.

  Raises:
    UserError: naming the first key that is wrong.
  """
  for side in ('a', 'b'):
    if not config[side]:
      raise errors.UserError(
        f'--config.{side}= is missing: the set of images to compare, '
        f'{sources.FORMS}.'
      )
  section = config.fid
  for key, least in _LEAST.items():
    if section[key] < least:
      raise errors.UserError(
        f'fid.{key}={section[key]} must be at least {least}.'
      )
  distance.check_num(section.num)
  settings = extractor.Settings(
    section.weights, section.tap, section.resize, section.quantise
  )
  settings.check()
  return settings


def summary(a: str, b: str, result: dict[str, Any]) -> str:
  """The result in words."""
  text = f'FID {result["fid"]:.6g}'
  if 'fid_infinity' in result:
    text += f' ({result["fid_infinity"]:.6g} for infinitely many images)'
  if result['kid'] is not None:
    text += f', KID {result["kid"]:.6g} +- {result["kid_stderr"]:.2g}'
  counts = [
    'unknown' if result[key] is None else result[key]
    for key in ('num_a', 'num_b')
  ]
  text += f' between {a} ({counts[0]} images) and {b} ({counts[1]} images)'
  digest = result['weights_sha256']
  text += (
    f'; tap {result["tap"]}, resize {result["resize"]}, quantise '
    f'{result["quantise"]}, weights {digest[:8] if digest else "unknown"}'
  )
  if not result['calibrated']:
    text += (
      ': uncalibrated, since the weights are not known to be the public ones; '
      'compare it with distances of the same weights alone'
    )
  return text + '.'


def _open(
  config: Any,
  side: str,
  settings: extractor.Settings,
  open_generator: Callable[[str, str], sources.Batches],
) -> sources.Source | statistics.Moments:
  spec = config[side]
  if not spec.endswith('.npz'):
    return sources.find(spec, dir=config.dir, open_generator=open_generator)
  found = statistics.Moments.load(epath.Path(spec).expanduser(), settings.tap)
  _same(spec, found.facts, 'resize', settings.resize)
  _same(spec, found.facts, 'quantise', settings.quantise)
  missing = [key for key in _FACTS if key not in found.facts]
  if missing:
    logging.warning(
      '%s does not say its %s: taken to be as the other set is looked at, with '
      "fid.resize=%s, fid.quantise=%s and fid.weights=%r ('': the public "
      'release). Files of pytorch-fid itself have resize=torch.',
      spec,
      ', '.join(missing),
      settings.resize,
      settings.quantise,
      settings.weights,
    )
  return found


def _measure(
  config: Any,
  settings: extractor.Settings,
  opened: dict[str, sources.Source | statistics.Moments],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, statistics.AnyStatistics]]:
  """What belongs beside the distance and each side, and their statistics."""
  files = [
    (config[side], found.facts)
    for side, found in opened.items()
    if isinstance(found, statistics.Moments)
  ]
  made_by = {side: getattr(s, 'facts', None) for side, s in opened.items()}
  if len(files) == len(opened):
    return _facts_of_files(settings, files), made_by, opened
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  features = extractor.Extractor(settings, config.fid.batch_size, mesh)
  for spec, facts in files:
    _same(spec, facts, 'weights_sha256', features.weights_sha256)
  found = {
    side: _statistics(features, source)
    if isinstance(source, sources.Source)
    else source
    for side, source in opened.items()
  }
  own = features.facts()
  made_by = {side: own if x is None else x for side, x in made_by.items()}
  calibrated = all(map(_calibrated, made_by.values()))
  return own | {'calibrated': calibrated}, made_by, found


def _calibrated(facts: dict[str, Any]) -> bool:
  """Whether statistics are known to be of the public weights."""
  known = all(key in facts for key in _FACTS)
  return known and facts['weights_sha256'] == weights.SHA256


def _facts_of_files(
  settings: extractor.Settings, files: list[tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
  """Two statistics files need no weights; theirs are what they say."""
  digests = [facts.get('weights_sha256') for _, facts in files]
  if all(digests):
    _same(*files[0], 'weights_sha256', digests[1])
  return {
    'tap': settings.tap,
    'resize': settings.resize,
    'quantise': settings.quantise,
    'weights_sha256': digests[0] if all(digests) else None,
    'calibrated': all(_calibrated(facts) for _, facts in files),
  }


def _same(spec: str, facts: dict[str, Any], key: str, expected: Any) -> None:
  """Raises UserError when a file says that it was made otherwise."""
  if key in facts and facts[key] != expected:
    raise errors.UserError(
      f'{spec} was made with {key}={facts[key]}, and the other set is looked '
      f'at with {key}={expected}: set fid.{key.removesuffix("_sha256")} alike, '
      'or make it anew.'
    )


def _statistics(
  features: extractor.Extractor, source: sources.Source
) -> statistics.Statistics:
  return cached.compute(
    features,
    source.place,
    source.identity,
    lambda: source.batches(features.batch_size),
    source.name,
  )


def _write(config, workdir, result, made_by, found) -> None:
  run_ = workdir_lib.Workdir(workdir, writer=jax.process_index() == 0)
  if config.save_statistics:
    for side, one in found.items():
      content = statistics.to_bytes(one, made_by[side])
      run_.write_bytes(f'{side}.npz', content)
  run_.write_json(RESULT, result)
