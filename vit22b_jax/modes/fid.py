"""`--mode=fid`: the distances of any two sets of images, as fid.json.

python main.py --mode=fid --config=configs/fid.py --config.a=X --config.b=Y
"""

import dataclasses
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
from vit22b_jax.runtime import console, runs
from vit22b_jax.runtime import workdir as workdir_lib

KEYS = (
  *('fid', 'kid', 'kid_stderr', 'tap', 'resize', 'quantize', 'num_a', 'num_b'),
  *('weights_sha256', 'calibrated', 'fid_infinity', 'seconds'),
)
# What a statistics file has to say for a distance to be comparable.
_FACTS = ('resize', 'quantize', 'weights_sha256')
_SIDES = ('a', 'b')

OpenGenerator = Callable[[str, str], image_sources.Batches]
Sets = dict[str, image_sources.Source | statistics.Statistics]  # by side


def run(
  config: ConfigDict, workdir: str | None, open_generator: OpenGenerator
) -> dict[str, Any]:
  """Compares two sets, prints the distances and writes them.

  Args:
    config: of configs/fid.py.
    workdir: folder for fid.json (and, on request, a.npz and b.npz), if any.
    open_generator: (workdir, direction) -> batches {'image', 'mask'} of what a
      run's generator makes of its test part; float in [0, 255] or uint8.

  Returns:
    The content of fid.json: KEYS, `fid_infinity` when asked for.

  Raises:
    UserError: a mistake in the config, or in the sets.
  """
  start = time.monotonic()
  settings = extractor.Settings.of(config.fid)
  sets = {
    side: _open(config, side, settings, open_generator) for side in _SIDES
  }
  facts, found = _statistics(config, settings, sets)
  a, b = distances.select(found['a'], found['b'], config.fid.num)
  result = facts | distances.measure(
    a,
    b,
    kid_subsets=config.fid.kid_subsets,
    kid_subset_size=config.fid.kid_subset_size,
  )
  result['calibrated'] = all(_calibrated(s.facts) for s in found.values())
  if config.infinity:
    result['fid_infinity'], sweep = distances.extrapolate(a, b)
    for num_a, num_b, value in sweep:
      console.say(f'  {num_a} and {num_b} images: FID {value:.6g}')
  result['seconds'] = round(time.monotonic() - start, 2)
  result = {key: result[key] for key in KEYS if key in result}
  console.say(_summary(config, result))
  if workdir is not None:
    folder = workdir_lib.Workdir(workdir, writer=jax.process_index() == 0)
    for side in _SIDES if config.save_statistics else ():
      folder.write_bytes(f'{side}.npz', statistics.to_bytes(found[side]))
    folder.write_json('fid.json', result)
  return result


def _summary(config: ConfigDict, result: dict[str, Any]) -> str:
  """Returns the result in words."""
  text = f'FID {result["fid"]:.6g}'
  if 'fid_infinity' in result:
    text += f' ({result["fid_infinity"]:.6g} for infinitely many images)'
  if result['kid'] is not None:
    stderr = result['kid_stderr']
    text += f', KID {result["kid"]:.6g} ' + (
      '(without an error, which needs more than 2 images of each set)'
      if stderr is None
      else f'+- {stderr:.2g}'
    )
  known = {k: 'unknown' if v is None else v for k, v in result.items()}
  # Statistics of both sets need no weights: then the key says nothing of them.
  loads = not all(config[side].endswith('.npz') for side in _SIDES)
  weights = runs.describe_weights(
    config.fid.weights if loads else '', known['weights_sha256']
  )
  text += (
    f' between {config.a} ({known["num_a"]} images) and {config.b} '
    f'({known["num_b"]} images); tap {known["tap"]}, resize {known["resize"]}, '
    f'quantize {known["quantize"]}, {weights}'
  )
  if not result['calibrated']:
    text += (
      ': uncalibrated, since the weights are not known to be the public ones; '
      'compare it with distances of the same weights alone'
    )
  return text + '.'


def _open(
  config: ConfigDict,
  side: str,
  settings: extractor.Settings,
  open_generator: OpenGenerator,
) -> image_sources.Source | statistics.Statistics:
  spec = config[side]
  if not spec:
    raise errors.UserError(
      f'--config.{side}= is missing: the set of images to compare, '
      f'{image_sources.FORMS}.'
    )
  workdir_lib.validate_place(spec)
  if not spec.endswith('.npz'):
    return image_sources.find(
      spec, dir=config.dir, open_generator=open_generator
    )
  if config.infinity:
    raise errors.UserError(
      'infinity=True needs the images of both sets, to take parts of them, '
      f'and {side}={spec} has their statistics alone: give the images, or '
      'leave infinity out.'
    )
  found = statistics.Statistics.load(
    epath.Path(spec).expanduser(), settings.tap
  )
  _validate_same(spec, found.facts, 'resize', settings.resize)
  _validate_same(spec, found.facts, 'quantize', settings.quantize)
  if missing := ', '.join(key for key in _FACTS if key not in found.facts):
    logging.warning(
      '%s does not say its %s: taken to be as the other set is looked at, with '
      "fid.resize=%s, fid.quantize=%s and fid.weights=%r ('': the public "
      'release). Files of pytorch-fid itself have resize=torch.',
      spec,
      missing,
      settings.resize,
      settings.quantize,
      settings.weights,
    )
  return found


def _statistics(
  config: ConfigDict, settings: extractor.Settings, sets: Sets
) -> tuple[dict[str, Any], dict[str, statistics.Statistics]]:
  """Returns what belongs beside the distance, and statistics by side."""
  files = {
    side: one.facts
    for side, one in sets.items()
    if isinstance(one, statistics.Statistics)
  }
  if len(files) < len(sets):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
    features = extractor.Extractor(settings, config.fid.batch_size, mesh)
    facts = features.facts
  else:
    digests = [theirs.get('weights_sha256') for theirs in files.values()]
    digest = digests[0] if all(digests) else None
    facts = {**dataclasses.asdict(settings), 'weights_sha256': digest}
  for side, theirs in files.items():
    if digest := facts['weights_sha256']:
      _validate_same(config[side], theirs, 'weights_sha256', digest)
  found = {
    side: one if side in files else one.statistics(features)
    for side, one in sets.items()
  }
  return facts, found


def _calibrated(facts: dict[str, Any]) -> bool:
  """Returns whether statistics are known to be of the public weights."""
  known = all(key in facts for key in _FACTS)
  return known and facts['weights_sha256'] == inception_weights.SHA256


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
