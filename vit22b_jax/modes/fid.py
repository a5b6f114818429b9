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
from ml_collections import ConfigDict

from vit22b_jax import errors
from vit22b_jax.fid import (
  distances,
  extractor,
  image_sources,
  inception_weights,
  statistics,
)
from vit22b_jax.runtime import console
from vit22b_jax.runtime import workdir as workdir_lib

RESULT = 'fid.json'
KEYS = (
  *('fid', 'kid', 'kid_stderr', 'tap', 'resize', 'quantize', 'num_a', 'num_b'),
  *('weights_sha256', 'calibrated', 'fid_infinity', 'seconds'),
)
# What a statistics file has to say for a distance to be comparable.
_FACTS = ('resize', 'quantize', 'weights_sha256')
_SIDES = ('a', 'b')

OpenGenerator = Callable[[str, str], image_sources.Batches]


def run(
  config: ConfigDict, workdir: str | None, open_generator: OpenGenerator
) -> dict[str, Any]:
  """Compares two sets, prints the distances and writes them.

  Args:
    config: of configs/fid.py.
    workdir: folder for fid.json (and, on request, a.npz and b.npz); None
      writes nothing.
    open_generator: (workdir, direction) -> batches {'image', 'mask'} of what a
      run's generator makes of its test part; float in [0, 255] or uint8.

  Returns:
    The content of fid.json: `fid kid kid_stderr tap resize quantize num_a num_b
    weights_sha256 calibrated seconds`, and `fid_infinity` when asked for.

  Raises:
    UserError: a mistake in the config, or in the sets.
  """
  start = time.monotonic()
  validate_sets(config)
  settings = extractor.Settings.of(config.fid)
  opened = {
    side: _open(config, side, settings, open_generator) for side in _SIDES
  }
  facts, made_by, found = _statistics(config, settings, opened)
  a, b = distances.select(found['a'], found['b'], config.fid.num)
  result = facts | distances.measure(
    a,
    b,
    kid_subsets=config.fid.kid_subsets,
    kid_subset_size=config.fid.kid_subset_size,
  )
  if config.infinity:
    result['fid_infinity'], sweep = distances.extrapolate(a, b)
    for num_a, num_b, value in sweep:
      console.say(f'  {num_a} and {num_b} images: FID {value:.6g}')
  result['seconds'] = round(time.monotonic() - start, 2)
  result = {key: result[key] for key in KEYS if key in result}
  console.say(summary(config.a, config.b, result))
  if workdir is not None:
    _write(config, workdir, result, made_by, found)
  return result


def validate_sets(config: ConfigDict) -> None:
  """Raises UserError for sets that can't be compared as the config asks."""
  for side in _SIDES:
    if not config[side]:
      raise errors.UserError(
        f'--config.{side}= is missing: the set of images to compare, '
        f'{image_sources.FORMS}.'
      )
    if config.infinity and config[side].endswith('.npz'):
      raise errors.UserError(
        f'infinity=True needs the images of both sets, to take parts of them, '
        f'and {side}={config[side]} has their statistics alone: give the '
        'images, or leave infinity out.'
      )


def summary(a: str, b: str, result: dict[str, Any]) -> str:
  """Returns the result in words."""
  text = f'FID {result["fid"]:.6g}'
  if 'fid_infinity' in result:
    text += f' ({result["fid_infinity"]:.6g} for infinitely many images)'
  if result['kid'] is not None:
    text += f', KID {result["kid"]:.6g} {_error(result["kid_stderr"])}'
  counts = [
    'unknown' if result[key] is None else result[key]
    for key in ('num_a', 'num_b')
  ]
  text += f' between {a} ({counts[0]} images) and {b} ({counts[1]} images)'
  digest = result['weights_sha256']
  text += (
    f'; tap {result["tap"]}, resize {result["resize"]}, quantize '
    f'{result["quantize"]}, weights {digest[:8] if digest else "unknown"}'
  )
  if not result['calibrated']:
    text += (
      ': uncalibrated, since the weights are not known to be the public ones; '
      'compare it with distances of the same weights alone'
    )
  return text + '.'


def _error(stderr: float | None) -> str:
  if stderr is None:
    return '(without an error, which needs more than 2 images of each set)'
  return f'+- {stderr:.2g}'


def _open(
  config: ConfigDict,
  side: str,
  settings: extractor.Settings,
  open_generator: OpenGenerator,
) -> image_sources.Source | statistics.Moments:
  spec = config[side]
  if not spec.endswith('.npz'):
    return image_sources.find(
      spec, dir=config.dir, open_generator=open_generator
    )
  found = statistics.Moments.load(epath.Path(spec).expanduser(), settings.tap)
  _validate_same(spec, found.facts, 'resize', settings.resize)
  _validate_same(spec, found.facts, 'quantize', settings.quantize)
  missing = [key for key in _FACTS if key not in found.facts]
  if missing:
    logging.warning(
      '%s does not say its %s: taken to be as the other set is looked at, with '
      "fid.resize=%s, fid.quantize=%s and fid.weights=%r ('': the public "
      'release). Files of pytorch-fid itself have resize=torch.',
      spec,
      ', '.join(missing),
      settings.resize,
      settings.quantize,
      settings.weights,
    )
  return found


def _statistics(
  config: ConfigDict,
  settings: extractor.Settings,
  opened: dict[str, image_sources.Source | statistics.Moments],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, statistics.AnyStatistics]]:
  """Returns what belongs beside the distance and each side, and statistics."""
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
    _validate_same(spec, facts, 'weights_sha256', features.weights_sha256)
  found = {
    side: features.cached_statistics(
      source.place,
      source.identity,
      lambda source=source: source.batches(features.batch_size),
      source.name,
    )
    if isinstance(source, image_sources.Source)
    else source
    for side, source in opened.items()
  }
  own = features.facts()
  made_by = {side: own if x is None else x for side, x in made_by.items()}
  calibrated = all(map(_calibrated, made_by.values()))
  return own | {'calibrated': calibrated}, made_by, found


def _calibrated(facts: dict[str, Any]) -> bool:
  """Returns whether statistics are known to be of the public weights."""
  known = all(key in facts for key in _FACTS)
  return known and facts['weights_sha256'] == inception_weights.SHA256


def _facts_of_files(
  settings: extractor.Settings, files: list[tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
  """Returns what two statistics files say, which need no weights."""
  digests = [facts.get('weights_sha256') for _, facts in files]
  if all(digests):
    _validate_same(*files[0], 'weights_sha256', digests[1])
  return {
    'tap': settings.tap,
    'resize': settings.resize,
    'quantize': settings.quantize,
    'weights_sha256': digests[0] if all(digests) else None,
    'calibrated': all(_calibrated(facts) for _, facts in files),
  }


def _validate_same(
  spec: str, facts: dict[str, Any], key: str, expected: Any
) -> None:
  """Raises UserError when a file says that it was made otherwise."""
  if key in facts and facts[key] != expected:
    raise errors.UserError(
      f'{spec} was made with {key}={facts[key]}, and the other set is looked '
      f'at with {key}={expected}: set fid.{key.removesuffix("_sha256")} alike, '
      'or make it anew.'
    )


def _write(config, workdir, result, made_by, found) -> None:
  run_ = workdir_lib.Workdir(workdir, writer=jax.process_index() == 0)
  if config.save_statistics:
    for side, one in found.items():
      content = statistics.to_bytes(one, made_by[side])
      run_.write_bytes(f'{side}.npz', content)
  run_.write_json(RESULT, result)
