"""Finds the runs that a command names: `read(['runs/a', 'runs/vit*'])`."""

import os
import re
from collections.abc import Iterable

from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.runtime import formats, runs, workdir


def read(workdirs: Iterable[epath.PathLike]) -> list[runs.Run]:
  """Reads runs that can be compared, each once, in the order given.

  Args:
    workdirs: folders, local or remote; * ? and [] match as in a shell, and
      leave out what isn't a workdir.

  Raises:
    errors.UserError: fewer than two runs, a folder that isn't a workdir, a
      pattern that matches none, or storage other than disks and `gs://`.
  """
  places = {}
  for entry in workdirs:
    for path in _matches(os.path.expanduser(str(entry).strip())):
      # Two names of a folder are one run; buckets have no links.
      remote = files.is_remote(path)
      found = path if remote else epath.Path(os.path.abspath(path))
      places.setdefault(path if remote else os.path.realpath(path), found)
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
  return [runs.read(path) for path in places.values()]


def _matches(entry: str) -> list[epath.Path]:
  """Returns the workdirs that a folder or a pattern stands for."""
  if not entry:
    return []
  workdir.validate_place(entry)
  path = epath.Path(entry)
  if not any(sign in entry for sign in '*?[') or path.exists():
    _validate_workdir(path)
    return [path]
  root = re.match(r'\w+://[^/]*/|/|', entry)[0]
  found = epath.Path(root or '.').glob(entry.removeprefix(root))
  found = sorted(path for path in found if _is_run(path))
  if not found:
    raise errors.UserError(
      f'--workdirs={entry}: no folder there holds a run (a {workdir.CONFIG}).'
    )
  return found


def _is_run(path: epath.Path) -> bool:
  """Returns whether a config.json is a run's, and not another program's.

  A damaged one counts: it is told of when it is read.
  """
  try:
    config = formats.read_json(path / workdir.CONFIG)
    return isinstance(config, dict) and 'task' in config
  except errors.UserError:
    return True


def _validate_workdir(path: epath.Path) -> None:
  if (path / workdir.CONFIG).exists():
    return
  if not path.exists():
    raise errors.UserError(f'--workdirs: there is no folder {path}.')
  hint = 'Give the folder that a run wrote.'
  if path.is_dir() and any(_is_run(p) for p in path.iterdir()):
    hint = f'It holds runs, though: give "{path}/*".'
  raise errors.UserError(
    f'{path} is not a workdir: it has no {workdir.CONFIG}. {hint}'
  )
