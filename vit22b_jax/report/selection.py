"""Which runs a command means: `read(['runs/a', 'runs/figure2*'])`."""

import itertools
import json
import os
from collections.abc import Iterable

from etils import epath

from vit22b_jax import errors
from vit22b_jax.report import kinds, workdir

_CONFIG = 'config.json'


def read(workdirs: Iterable[epath.PathLike]) -> list[workdir.Run]:
  """Reads runs that can be compared, each once, in the order given.

  Args:
    workdirs: folders, local or remote; * ? and [] match as in a shell, and
      leave out what isn't a workdir.

  Raises:
    errors.UserError: fewer than two runs, a folder that isn't a workdir, a
      pattern that matches none, or runs of different tasks.
  """
  places = {}
  for entry in workdirs:
    for path in _matches(str(entry).strip()):
      found = _absolute(path)
      # Two names of a folder are one run; buckets have no links.
      same = found if is_remote(found) else found.resolve()
      places.setdefault(same, found)
  if not places:
    raise errors.UserError(
      '--mode=report needs --workdirs=RUN,RUN,... of two runs or more, such as'
      ' --workdirs=runs/a,runs/b or "--workdirs=runs/*".'
    )
  if len(places) == 1:
    (path,) = places.values()
    raise errors.UserError(
      f'{path} is the only run: give two or more to compare. Its own page is'
      f' {path / "report.html"}.'
    )
  runs = [workdir.read(path) for path in places.values()]
  _check_tasks(runs)
  return runs


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path has a scheme, as `gs://bucket/folder` does."""
  return '://' in os.fspath(path)


def _absolute(path: epath.Path) -> epath.Path:
  return path if is_remote(path) else epath.Path(os.path.abspath(path))


def _matches(entry: str) -> list[epath.Path]:
  """The workdirs that a folder or a pattern stands for."""
  if not entry:
    return []
  path = epath.Path(entry).expanduser()
  if not any(sign in entry for sign in '*?[') or path.exists():
    _check_workdir(path)
    return [path]
  root, pattern = _split(entry)
  found = sorted(p for p in root.glob(pattern) if _is_run(p))
  if not found:
    raise errors.UserError(
      f'--workdirs={entry}: no folder there holds a run (a {_CONFIG}).'
    )
  return found


def _split(entry: str) -> tuple[epath.Path, str]:
  """The folder before the first sign of a pattern, and the rest."""
  parts = entry.split('/')
  kept = list(
    itertools.takewhile(lambda part: not any(s in part for s in '*?['), parts)
  )
  root = '/'.join(kept) or ('/' if entry.startswith('/') else '.')
  return epath.Path(root).expanduser(), '/'.join(parts[len(kept) :])


def _is_run(path: epath.Path) -> bool:
  """Whether a folder's config.json is a run's, and not another program's.

  A damaged one counts: it is told of when it is read.
  """
  config = path / _CONFIG
  if not config.exists():
    return False
  try:
    return workdir.is_config(json.loads(config.read_text()))
  except ValueError:
    return True


def _check_workdir(path: epath.Path) -> None:
  if (path / _CONFIG).exists():
    return
  if not path.exists():
    raise errors.UserError(f'--workdirs: there is no folder {path}.')
  hint = 'Give the folder that a run wrote.'
  if path.is_dir() and any(_is_run(p) for p in path.iterdir()):
    hint = f'It holds runs, though: give "{path}/*".'
  raise errors.UserError(
    f'{path} is not a workdir: it has no {_CONFIG}. {hint}'
  )


def _check_tasks(runs: list[workdir.Run]) -> None:
  tasks: dict[str, list[str]] = {}
  for run in runs:
    kinds.of(run)  # refuses tasks without a report
    tasks.setdefault(run.config['task'], []).append(str(run.path))
  if len(tasks) > 1:
    commands = [f'{task}: {",".join(paths)}' for task, paths in tasks.items()]
    raise errors.UserError(
      'Runs of different tasks have no number in common: compare each task by'
      f' itself. --workdirs of {"; of ".join(commands)}'
    )
