"""Writes the page of several runs: `compare(['runs/a', 'runs/b'], output)`.

Runs that differ in their seeds alone form a group; see `groups`. Each task has
a part of the page.
"""

import functools
import os
import re
import urllib.parse
from collections.abc import Iterable
from typing import Any

import markupsafe
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.report import (
  charts,
  groups,
  page,
  results,
  samples,
  summary,
  task_pages,
  translation_page,
)
from vit22b_jax.runtime import formats, runs, workdir

_NAMED = 4  # runs that a verdict names
_FILES = (workdir.METRICS, workdir.DIAGNOSTICS, workdir.EVAL, workdir.VERSIONS)


def compare(
  workdirs: Iterable[epath.PathLike], output: epath.PathLike
) -> epath.Path:
  """Writes the page that compares runs, and returns its path.

  Args:
    workdirs: see `read_runs`. The group of the first is the baseline.
    output: where the page goes; its folder is made when missing.

  Raises:
    errors.UserError: see `read_runs`; or `output` can't be written.
  """
  workdir.validate_place(output)
  several, path = read_runs(workdirs), epath.Path(output)
  html = _render(several, path.parent)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(f'Could not make {path.parent}: {error}.') from error
  page.save(path, html)
  return path


def read_runs(workdirs: Iterable[epath.PathLike]) -> list[runs.Run]:
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


def _render(several: list[runs.Run], folder: epath.Path) -> str:
  """Returns the page with a part for each task."""
  found = groups.from_runs(several)
  tasks: dict[str, list[groups.Group]] = {}
  for group in found:
    tasks.setdefault(group.members[0].run.config['task'], []).append(group)
  part = page.environment().get_template('compare_task.html')
  parts = [
    part.render(_content(alike, folder), title=task, alone=len(tasks) == 1)
    for task, alike in tasks.items()
  ]
  name = f'{found[0].name} and {len(found) - 1} others'
  if len(found) <= 2:
    name = ' and '.join(group.name for group in found)
  runs_, groups_ = _plural(len(several), 'run'), _plural(len(found), 'group')
  said = f'{runs_} in {groups_}: the configs of a group differ in their seeds'
  return page.render(
    'compare.html',
    name=name,
    summary=f'{said} alone.',
    parts=[markupsafe.Markup(html) for html in parts],
  )


def _content(found: list[groups.Group], folder: epath.Path) -> dict[str, Any]:
  """Returns the values of a task's part; empty ones are missing records."""
  members = [member for group in found for member in group.members]
  several = [member.run for member in members]
  pages = task_pages.for_task(several[0])
  wanted = results.measures(several)
  measured = [any(results.values(m, group) for m in wanted) for group in found]
  return {
    'verdicts': _verdicts(found),
    'groups': found,
    'results': results,
    'pages': pages,
    'wanted': wanted,
    'validated': results.validated_by(several),
    'baseline': measured.index(True) if True in measured else 0,
    'is_evaluated': any(group.evaluated for group in found),
    'are_alone': any(measure.is_part for measure in wanted)
    and any(len(group.evaluated) == 1 for group in found),
    'protocols': results.protocols(found),
    'own_splits': groups.own_splits(several),
    'histories': groups.other_histories(found),
    'machines': _machines(several),
    'config': groups.differences(found),
    'others': groups.other_differences(several),
    'epochs': charts.by_epoch(several),
    'curves': charts.group_curves(found, wanted_curves(several)),
    'stability': charts.group_stability(found, pages.WORDS.largest),
    'samples': show_samples(members) if pages is translation_page else None,
    'verdicts_of': page.verdicts,
    'missing_of': _missing,
    'link_of': functools.partial(_link, folder),
  }


def _plural(count: int, noun: str) -> str:
  return f'{count} {noun}' + ('' if count == 1 else 's')


def wanted_curves(
  several: list[runs.Run],
) -> list[tuple[str, str, dict[str, Any]]]:
  """Returns title, key of metrics.jsonl and axis of each chart."""
  titles: dict[str, list[str]] = {}
  axes = {}
  for run in several:
    for title, curves in task_pages.for_task(run).curves(run).items():
      for name, key, _ in curves.lines:
        full = f'{title}: {name}' if len(curves.lines) > 1 else title
        titles.setdefault(key, []).append(full)
        axes[key] = curves.axis
  return [
    (task_pages.common_title(found, key), key, axes[key])
    for key, found in titles.items()
  ]


def _verdicts(found: list[groups.Group]) -> list[summary.Verdict]:
  """Answers which does best, what exploded, what is done."""
  members = [member for group in found for member in group.members]
  states = [summary.progress(m.run).answer.lower() for m in members]
  others = sorted(set(states) - {'finished'})
  answer = f'{states.count("finished")} of {len(members)} finished'
  detail = ', '.join(f'{states.count(state)} {state}' for state in others)
  mood = 'plain' if others else 'good'
  done = summary.Verdict('Are they done?', answer, detail, mood)
  return [_best(found), _exploded(members), done]


def _exploded(members: list[groups.Member]) -> summary.Verdict:
  words = task_pages.for_task(members[0].run).WORDS
  answers = [(m, summary.stability(m.run, words)) for m in members]
  bad = [(m, answer) for m, answer in answers if answer.mood == 'bad']
  unknown = sum(answer.answer == 'Unknown' for _, answer in answers)
  said = [f'{m.name}: {a.answer.lower()}' for m, a in bad[:_NAMED]]
  if len(bad) > _NAMED:
    said.append(f'and {len(bad) - _NAMED} more')
  if unknown:
    said.append(f'{unknown} without diagnostics')
  answer = 'Unknown' if unknown == len(members) else 'No'
  mood = 'plain' if unknown else 'good'
  if bad:
    answer, mood = f'{len(bad)} of {_plural(len(members), "run")}', 'bad'
  return summary.Verdict('Did anything explode?', answer, ', '.join(said), mood)


def _best(found: list[groups.Group]) -> summary.Verdict:
  """Returns the group with the best mean, and how sure that is."""
  question = 'Which does best?'
  known = task_pages.for_task(found[0].members[0].run).HEADLINES
  having = {m: [g for g in found if results.values(m, g)] for m in known}
  # Of numbers that as many groups have, the first.
  headline = max(known, key=lambda m: len(having[m]))
  if not (tested := having[headline]):
    detail = f'No {known[0].label} yet.'
    return summary.Verdict(question, 'Unknown', detail, 'plain')
  if len(results.protocols(tested)) > 1:
    detail = 'Their numbers were measured differently: see the warning.'
    return summary.Verdict(question, 'Not comparable', detail, 'bad')
  (mean, best), *others = results.ranked(headline, tested)
  detail = f'{headline.label}: {mean:{headline.form}}'
  if others:
    cell = results.difference(headline, others[0][1], best)
    detail += f'; {cell.text} against {others[0][1].name}, {cell.note}'
  return summary.Verdict(question, best.name, f'{detail}.', 'plain')


def _machines(several: list[runs.Run]) -> list[str]:
  """Returns each kind of machine that the runs had, once."""
  found = []
  for run in several:
    devices, cpus = run.versions.get('devices') or [], run.versions.get('cpus')
    models = ', '.join(sorted(set(devices)))
    said = f'{len(devices)} x {models}' if devices else 'unknown'
    found.append(f'{said} ({cpus} CPUs)' if cpus else said)
  return list(dict.fromkeys(found))


def show_samples(members: list[groups.Member]) -> dict[str, Any]:
  """Returns the grids of all runs next to their evaluated weights."""
  read = [
    (m, translation_page.pictures(m.run, over_time=False)) for m in members
  ]
  shown = [(m, step, both) for m, one in read for step, both in one.items()]
  film = samples.film([both for _, _, both in shown])
  directions: dict[str, list[dict[str, Any]]] = {}
  for place, direction in enumerate(
    translation_page.DIRECTIONS if shown else ()
  ):
    arrows = [translation_page.arrow(m.run, direction) for m, _, _ in shown]
    directions[task_pages.common_title(arrows, direction)] = [
      {
        'member': member,
        'step': step,
        'picture': pictures[place],
        **translation_page.directions(member.run)[place],
      }
      for (member, step, _), pictures in zip(shown, film, strict=True)
    ]
  missing = [member.name for member, one in read if not one]
  return {'directions': directions, 'missing': missing}


def _missing(run: runs.Run) -> list[str]:
  return [name for name in _FILES if not (run.path / name).exists()]


def _link(folder: epath.Path, run: runs.Run) -> str:
  """Returns a link from a page's folder to a run's own; '' where none leads."""
  target = run.path / 'report.html'
  remote = {files.is_remote(target), files.is_remote(folder)}
  apart = True in remote and target.parts[:3] != folder.parts[:3]
  if not target.exists() or len(remote) > 1 or apart:
    return ''
  relative = os.path.relpath(str(target), str(folder))
  return urllib.parse.quote(relative, errors='surrogateescape')
