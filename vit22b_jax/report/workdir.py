"""The files of a workdir as arrays and dicts: `read(workdir) -> Run`.

A run may have stopped anywhere, so every file but config.json is optional, a
half-written last line is dropped, and values may be NaN or infinite.
"""

import contextlib
import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from vit22b_jax import config as config_lib
from vit22b_jax import errors

Series = tuple[Int[np.ndarray, 'points'], Float[np.ndarray, 'points']]


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir holds. Empty containers stand for missing files.

  Attributes:
    path: the workdir.
    config: raw choices, nested as in the config file.
    versions: package, libraries and devices of the last start.
    metrics: rows of metrics.jsonl, by step.
    diagnostics: column name -> [rows]; 'step' is one of them.
    events: rows of events.jsonl, by step.
    evaluation: eval.json, the final evaluation.
    predictions: arrays of predictions.npz.
    names: of the classes or the two domains, from classes.json.
    samples: direction -> step -> its grid of sample images, a PNG file.
  """

  path: epath.Path
  config: dict[str, Any]
  versions: dict[str, Any]
  metrics: list[dict[str, Any]]
  diagnostics: dict[str, Float[np.ndarray, 'rows']]
  events: list[dict[str, Any]]
  evaluation: dict[str, Any]
  predictions: dict[str, np.ndarray]
  names: list[str]
  samples: dict[str, dict[int, epath.Path]]

  @property
  def name(self) -> str:
    return self.path.name

  def metric(self, key: str) -> Series:
    """Steps and values of the rows that have `key`."""
    rows = [row for row in self.metrics if row.get(key) is not None]
    steps = np.array([row['step'] for row in rows], np.int64)
    return steps, np.array([float(row[key]) for row in rows], np.float64)

  def layers(
    self, statistic: str
  ) -> tuple[Int[np.ndarray, 'rows'], Float[np.ndarray, 'depth rows']] | None:
    """Steps and values of the diagnostics `statistic/00`, `statistic/01`, ...

    Leaves out the blank rows from before the statistic was switched on. NaNs of
    a broken step come with a loss that isn't finite, and stay. None when no row
    is left.
    """
    # Layer numbers are zero-padded, so names sort as layers do.
    pattern = re.compile(rf'{statistic}/\d+')
    names = sorted(filter(pattern.fullmatch, self.diagnostics))
    if not names:
      return None
    values = np.stack([self.diagnostics[name] for name in names])
    broken = ~np.isfinite(self.diagnostics['loss'])
    kept = np.isfinite(values).any(0) | broken
    if not kept.any():
      return None
    return self.diagnostics['step'][kept].astype(np.int64), values[:, kept]

  @property
  def onset(self) -> dict[str, Any] | None:
    """The first event that is more than a start-up transient."""
    serious = [e for e in self.events if e['kind'] != 'transient']
    return serious[0] if serious else None

  @property
  def last_step(self) -> int:
    """The last step that left a trace in any file."""
    steps = [row['step'] for row in [*self.metrics, *self.events]]
    steps.extend(self.diagnostics.get('step', np.zeros(0))[-1:].astype(int))
    return max([int(self.evaluation.get('step', 0)), *steps])


def read(workdir: epath.PathLike) -> Run:
  """Reads a workdir, local or remote.

  Raises:
    errors.UserError: `workdir` has no config.json of a run, or a file is
      damaged.
  """
  path = epath.Path(workdir)
  if not (path / 'config.json').exists():
    raise errors.UserError(
      f'{path} is not a workdir: it has no config.json. Give the folder that'
      ' a run wrote, such as runs/cifar100_vit22b_s.'
    )
  config = _read_json(path / 'config.json')
  if not is_config(config):
    raise errors.UserError(
      f'{path} is not a workdir: its config.json has no task, so it is of'
      ' another program. Leave it out.'
    )
  return Run(
    path=path,
    config=config_lib.rename_keys(config),
    versions=_read_json(path / 'versions.json'),
    metrics=_read_rows(path / 'metrics.jsonl'),
    diagnostics=_read_csv(path / 'diagnostics.csv'),
    events=_read_rows(path / 'events.jsonl'),
    evaluation=config_lib.rename_keys(
      _read_json(path / 'eval.json'), prefix='fid.'
    ),
    predictions=_read_npz(path / 'predictions.npz'),
    names=_read_json(path / 'classes.json') or [],
    samples=_samples(path / 'samples'),
  )


def is_config(content: Any) -> bool:
  """Whether this is what a config.json of a run holds."""
  return isinstance(content, dict) and 'task' in content


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'optim': {'b1': 0.9}} -> {'optim.b1': 0.9}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def text(value: Any) -> str:
  """A value of a config or of versions, for readers."""
  return ', '.join(map(str, value)) if isinstance(value, list) else str(value)


def place(event: dict[str, Any]) -> str:
  """Where an event happened, for readers; '' when no layer stands out."""
  layer = (event['layer'] or '').removeprefix('block_')
  return f'block {layer}' if layer.isdigit() else layer


def details(event: dict[str, Any]) -> str:
  """What else an event says: values, thresholds, z-scores, message."""
  said = {'step', 'kind', 'layer', 'moved_first', 'action'}
  parts = []
  for key, value in event.items():
    if isinstance(value, dict):
      inner = ' '.join(f'{k} {_brief(v)}' for k, v in value.items())
      parts.append(f'{key}: {inner}')
    elif key not in said and value is not None:
      parts.append(f'{key} {_brief(value)}')
  return ', '.join(parts)


def _brief(value: Any) -> str:
  return f'{value:,.4g}' if isinstance(value, float) else str(value)


def _parse(text: str) -> Any:
  """JSON has no NaN and infinity: the files have text in their place."""
  numbers = {name: float(name) for name in ('nan', 'inf', '-inf')}

  def restored(row):
    return {
      k: numbers.get(v, v) if isinstance(v, str) else v for k, v in row.items()
    }

  return json.loads(text, object_hook=restored)


def _samples(folder: epath.Path) -> dict[str, dict[int, epath.Path]]:
  """The grids DIRECTION_STEP.png of a folder, by direction and step."""
  grids: dict[str, dict[int, epath.Path]] = {}
  if folder.exists():
    for path in folder.iterdir():
      found = re.fullmatch(r'(a2b|b2a)_(\d+)\.png', path.name)
      if found:
        grids.setdefault(found[1], {})[int(found[2])] = path
  return grids


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
  """What goes wrong in a file becomes an error that names it."""
  try:
    yield
  except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
    raise errors.UserError(
      f'{path} is damaged ({e}): put a backup in its place, or leave its run'
      ' out.'
    ) from None


def _read_json(path: epath.Path) -> Any:
  with _reading(path):
    return _parse(path.read_text()) if path.exists() else {}


def _complete_lines(path: epath.Path) -> list[str]:
  """Lines that end in a newline: the rest was being written in a crash."""
  text = path.read_text() if path.exists() else ''
  return text[: text.rfind('\n') + 1].splitlines()


def _read_rows(path: epath.Path) -> list[dict[str, Any]]:
  with _reading(path):
    rows = [_parse(line) for line in _complete_lines(path) if line]
    return sorted(rows, key=lambda row: row['step'])


def _read_csv(path: epath.Path) -> dict[str, Float[np.ndarray, 'rows']]:
  lines = _complete_lines(path)
  if len(lines) < 2:
    return {}
  header, rows = lines[0].split(','), lines[1:]
  text = io.StringIO('\n'.join(rows))
  with _reading(path):
    table = np.loadtxt(
      text, delimiter=',', ndmin=2, converters=_number, encoding=None
    )
    table = table[np.argsort(table[:, 0], kind='stable')]
    return dict(zip(header, table.T, strict=True))


def _number(field: str) -> float:
  """A blank field (a column switched on after a resume) is NaN."""
  return float(field) if field else float('nan')


def _read_npz(path: epath.Path) -> dict[str, np.ndarray]:
  if not path.exists():
    return {}
  content = io.BytesIO(path.read_bytes())
  with _reading(path), np.load(content, allow_pickle=False) as arrays:
    return dict(arrays)
