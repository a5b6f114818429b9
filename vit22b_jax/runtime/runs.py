"""Reads a run's files as arrays and dicts, each judged once.

    run = runs.read('runs/cifar100_vit22b_s')
    steps, losses = run.metric('train/loss')

A run may have stopped anywhere, so every file but config.json is optional, a
half-written last line is dropped, and values may be NaN or infinite. Never
imports jax.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from vit22b_jax import config as config_lib
from vit22b_jax import errors, rules
from vit22b_jax.config import ConfigDict
from vit22b_jax.runtime import formats, workdir

Series = tuple[Int[np.ndarray, 'points'], Float[np.ndarray, 'points']]

_VERSIONS = formats.Fields(
  {}, {'parameters': int, 'devices': list, 'command': str}
)
_EVENT = formats.Fields(
  {'kind': str, 'action': str}, {'layer': str, 'moved_first': str}
)
_EVALUATED = {'split': str, 'step': int, 'weights': str}
_EVAL = {
  'classification': formats.Fields(
    _EVALUATED | {'num_examples': int},
    {'data': str}
    | dict.fromkeys(('loss', 'top1', 'top5', 'auroc', 'map'), float),
  ),
  'translation': formats.Fields(
    _EVALUATED | {'num_a': int, 'num_b': int},
    {
      f'{prefix}{measure}{direction}': float
      for prefix in ('', 'identity_', 'untrained_')
      for measure in ('fid', 'kid', 'kid_stderr', 'paired_l1')
      for direction in ('', '_a2b', '_b2a')
    }
    | {'weights_sha256': str, 'calibrated': bool, 'data': str},
  ),
}
_PROBE = formats.Fields(
  {'config': dict, 'trials': dict, 'switches': dict, 'advice': str}
)
_TRIAL = formats.Fields(
  {'switch': str, 'rate': float, 'steps': int},
  {'exploded': int, 'moved_first': str, 'layer': str, 'last_loss': float},
)
_BOUNDS = formats.Fields({}, {'stable_at': float, 'explodes_at': float})
_ARRAYS = {
  'images': ('u', 'M H W 3'),
  'image_rows': ('iu', 'M'),
  'indices': ('iu', 'N'),
  'labels': ('iu', 'N'),
  'targets': ('u', 'N C'),  # in place of one label, 1 for each of an image's
  'probabilities': ('f', 'N C'),
  'confusion': ('iu', 'C C'),
  'class_names': ('U', 'C'),
}
_MAPS = {
  'images': ('u', 'M H W 3'),
  'indices': ('iu', 'M'),
  'true': ('U', 'M'),
  'predicted': ('U', 'M'),
  'last': ('f', 'M h w'),
  'rollout': ('f', 'M h w'),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """The files of a run. Empty containers stand for missing files."""

  path: epath.Path
  config: dict[str, Any]  # raw choices, nested as in the config file
  versions: dict[str, Any]  # package, libraries, devices of the last start
  metrics: list[dict[str, Any]]  # rows by step
  diagnostics: dict[str, Float[np.ndarray, 'rows']]  # by column, with 'step'
  events: list[dict[str, Any]]  # rows by step
  evaluation: dict[str, Any]  # the final one
  predictions: dict[str, np.ndarray]
  attention: dict[str, np.ndarray]
  probe: dict[str, Any]  # of a probe in the same folder
  names: list[str]  # of the classes or the two domains
  samples: dict[str, dict[int, epath.Path]]  # direction -> step -> grid, a PNG
  damaged: list[str]  # messages about files that were left out, see `read`

  @property
  def name(self) -> str:
    """The folder's name, in characters that any file can hold."""
    return errors.printable(self.path.name)

  @functools.cached_property
  def choices(self) -> dict[str, Any]:
    """The config with keys such as 'optim.b1'."""
    return rules.flatten(self.config)

  def metric(self, key: str) -> Series:
    """Returns steps and values of a metric, or of a column of diagnostics."""
    if key in self.diagnostics:
      return self.diagnostics['step'].astype(np.int64), self.diagnostics[key]
    rows = [row for row in self.metrics if row.get(key) is not None]
    steps = np.array([row['step'] for row in rows], np.int64)
    return steps, np.array([float(row[key]) for row in rows], np.float64)

  def layers(
    self, statistic: str
  ) -> tuple[Int[np.ndarray, 'rows'], Float[np.ndarray, 'depth rows']] | None:
    """Returns steps and values of `statistic/00`, ...; None without them."""
    # Layer numbers are zero-padded, so names sort as layers do.
    pattern = re.compile(rf'{statistic}/\d+')
    names = sorted(filter(pattern.fullmatch, self.diagnostics))
    if not names:
      return None
    values = np.stack([self.diagnostics[name] for name in names])
    return self.diagnostics['step'].astype(np.int64), values

  @property
  def onset(self) -> dict[str, Any] | None:
    """The first event that is more than a start-up transient."""
    serious = [e for e in self.events if e['kind'] != 'transient']
    return serious[0] if serious else None

  @property
  def evaluated_data(self) -> str:
    """The data set of the final evaluation; else that of the training."""
    return self.evaluation.get('data', self.config['data']['name'])

  @property
  def last_step(self) -> int:
    """The last step that left a trace in any file."""
    steps = [row['step'] for row in [*self.metrics, *self.events]]
    steps.extend(self.diagnostics.get('step', np.zeros(0))[-1:].astype(int))
    return max([int(self.evaluation.get('step', 0)), *steps])

  @property
  def steps_per_epoch(self) -> int | None:
    """The length of an epoch; None before a row of metrics tells."""
    lengths = [r['step'] / r['epoch'] for r in self.metrics if r.get('epoch')]
    known = [round(x) for x in lengths if 1 <= x < math.inf]
    return known[-1] if known else None


def read(path: epath.PathLike, *, lenient: bool = False) -> Run:
  """Reads a workdir, local or remote, of a run that may still go on.

  Args:
    path: the workdir.
    lenient: leave out damaged files beside config.json, and list them in
      `damaged`.

  Raises:
    errors.UserError: it has no config.json of a run, or a file is
      damaged.
  """
  path = epath.Path(path)
  config = read_config(path).to_dict()
  damaged: list[str] = []

  def side(reader, name, *arguments, empty):
    try:
      return reader(path / name, *arguments) or empty
    except errors.UserError as error:
      if not lenient:
        raise
      damaged.append(str(error))
      return empty

  numbers = formats.Fields(others=float)
  evaluated = _EVAL.get(config['task'], formats.Fields())
  blank = {'layer': None, 'moved_first': None}
  events = side(formats.read_rows, workdir.EVENTS, _EVENT, empty=[])
  names = side(formats.read_json, workdir.CLASSES, list, empty=[])
  return Run(
    path=path,
    config=config,
    versions=side(formats.read_json, workdir.VERSIONS, _VERSIONS, empty={}),
    metrics=side(formats.read_rows, workdir.METRICS, numbers, empty=[]),
    diagnostics=side(formats.read_table, workdir.DIAGNOSTICS, empty={}),
    events=[blank | event for event in events],
    evaluation=config_lib.rename_keys(
      side(_read_evaluation, workdir.EVAL, evaluated, empty={}), 'fid.'
    ),
    predictions=side(_read_predictions, workdir.PREDICTIONS, empty={}),
    attention=side(_read_attention, workdir.ATTENTION, empty={}),
    probe=side(read_probe, workdir.PROBE, empty={}),
    names=[errors.printable(name) for name in names],
    samples=_find_samples(path / workdir.SAMPLES),
    damaged=damaged,
  )


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the rows of metrics.jsonl by step, [] where there's none.

  Raises:
    errors.UserError: the file is damaged.
  """
  path = epath.Path(path) / workdir.METRICS
  return formats.read_rows(path, formats.Fields(others=float))


def read_probe(path: epath.Path) -> dict[str, Any] | None:
  """Returns the content of a probe.json; None where there is no such file.

  Raises:
    errors.UserError: the file is damaged.
  """
  record = formats.read_json(path, _PROBE)
  if record is None:
    return None
  with formats.judging(path):
    for bounds in record['switches'].values():
      formats.validate(bounds, _BOUNDS)
    for trial in record['trials'].values():
      formats.validate(trial, _TRIAL)
      for key in ('max_logit', 'max_abs_grad'):  # None is not finite
        np.asarray(trial[key], float).reshape(-1)
  return record


def read_config(path: epath.PathLike) -> ConfigDict:
  """Returns the configuration that a run was made with.

  Raises:
    UserError: the folder isn't a run's, or its config.json is damaged.
  """
  config = find_config(path)
  if config is None:
    raise errors.UserError(
      f'{path} is not a workdir: it has no {workdir.CONFIG}. Give the folder '
      'that a run wrote, such as runs/cifar100_vit22b_s.'
    )
  return config


def find_config(path: epath.PathLike) -> ConfigDict | None:
  """Returns the configuration of a run; None where there is no config.json.

  Raises:
    UserError: the file is damaged.
  """
  workdir.validate_place(path)
  place = epath.Path(path) / workdir.CONFIG
  content = formats.read_bytes(place)
  if content is None:
    return None
  with formats.judging(place):
    text = content.decode()
  return config_lib.from_json(text, place)


def describe_weights(chosen: str, sha256: str | None) -> str:
  """Names Inception's weights for people: drawn ones by seed, else by digest.

  `chosen` is the key `fid.weights`; `sha256` is of the weights, where known.
  """
  if chosen.startswith('random:'):
    return f'random Inception weights, seed {chosen.removeprefix("random:")}'
  known = (sha256 or '')[:12] or chosen or 'of the public release'
  return f'weights {known}'


def _read_evaluation(
  path: epath.Path, fields: formats.Fields
) -> dict[str, Any]:
  found = formats.read_json(path, fields) or {}
  with formats.judging(path):
    for key in ('top1', 'top5', 'auroc', 'map'):
      value = found.get(key)
      if value is not None and (value < 0 or value > 1):
        raise ValueError(f'{key!r} is {value}, expected a part from 0 to 1')
    if precision := found.get('average_precision'):
      # A class without an image has none: JSON has 'nan' or null there.
      found['average_precision'] = [
        math.nan if value is None else float(value) for value in precision
      ]
  return found


def _read_predictions(path: epath.Path) -> dict[str, np.ndarray]:
  arrays = formats.read_arrays(path, _ARRAYS)
  if not arrays:
    return {}
  true = {'targets'} if 'targets' in arrays else {'labels', 'confusion'}
  with formats.judging(path):
    _validate_whole(arrays, {'images', 'probabilities', 'class_names', *true})
    count, classes = arrays['probabilities'].shape
    # Files of old runs hold their sample images alone, and no places.
    arrays.setdefault('image_rows', np.arange(len(arrays['images'])))
    arrays.setdefault('indices', np.arange(count))
    for name, limit in (('image_rows', count), ('labels', classes)):
      found = arrays.get(name, np.zeros(0))
      if ((found < 0) | (found >= limit)).any():
        raise ValueError(f'array {name!r} has values outside 0 to {limit - 1}')
  return arrays


def _read_attention(path: epath.Path) -> dict[str, np.ndarray]:
  arrays = formats.read_arrays(path, _MAPS)
  with formats.judging(path):
    if arrays:
      _validate_whole(arrays, {*_MAPS})
  return arrays


def _validate_whole(arrays: dict[str, np.ndarray], names: set[str]) -> None:
  if missing := names - arrays.keys():
    raise ValueError(f'array {min(missing)!r} is missing')
  if not all(arrays[name].size for name in names):
    raise ValueError('an array is empty')


def _find_samples(folder: epath.Path) -> dict[str, dict[int, epath.Path]]:
  """Returns the grids DIRECTION_STEP.png of a folder, by direction and step."""
  grids: dict[str, dict[int, epath.Path]] = {}
  if folder.is_dir():
    for path in folder.iterdir():
      found = re.fullmatch(r'(a2b|b2a)_(\d{1,15})\.png', path.name)
      if found:
        grids.setdefault(found[1], {})[int(found[2])] = path
  return grids
