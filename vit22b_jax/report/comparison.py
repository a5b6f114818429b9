"""The page of several runs: `compare(['runs/a', 'runs/b'], 'comparison.html')`.

Runs that differ in their seeds alone form a group; see `groups`.
"""

import os
import urllib.parse
from collections.abc import Iterable
from typing import Any

from etils import epath

from vit22b_jax import errors
from vit22b_jax.report import (
  charts,
  grids,
  groups,
  kinds,
  overlays,
  page,
  results,
  selection,
  story,
  templates,
  translation,
  workdir,
)

_EVENTS = 8  # rows of a run's table of events
_NAMED = 4  # runs that a verdict names
_FILES = ('metrics.jsonl', 'diagnostics.csv', 'eval.json', 'versions.json')


def compare(
  workdirs: Iterable[epath.PathLike], output: epath.PathLike
) -> epath.Path:
  """Writes the page that compares runs.

  Args:
    workdirs: see `selection.read`. The group of the first is the baseline.
    output: where the page goes; its folder is made when missing.

  Returns:
    Where the page is.

  Raises:
    errors.UserError: see `selection.read`; or `output` can't be written.
  """
  runs, path = selection.read(workdirs), epath.Path(output)
  template = templates.environment().get_template('compare.html')
  html = template.render(_content(runs, path.parent), plotly=page.plotly())
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(f'Could not make {path.parent}: {error}.') from error
  page.save(path, html)
  return path


def _content(runs: list[workdir.Run], folder: epath.Path) -> dict[str, Any]:
  """What the template shows; empty parts stand for what wasn't recorded.

  Args:
    runs: of one task.
    folder: where the page goes.
  """
  kind, found = kinds.of(runs[0]), groups.of(runs)
  wanted = results.measures(runs)
  members = [member for group in found for member in group.members]
  return {
    'name': _title(found),
    'summary': f'{len(runs)} runs in {len(found)} groups: the runs of a group'
    ' differ in their seeds alone.',
    'verdicts': _verdicts(found),
    'groups': found,
    'looks': [overlays.look(number) for number in range(len(found))],
    'columns': results.columns(runs),
    'rows': [results.row(g.members, g, wanted) for g in found],
    'member_rows': [
      [results.row([member], g, wanted) for member in g.members] for g in found
    ],
    'baseline': next((n for n, g in enumerate(found) if g.evaluated), 0),
    'measures': [measure.label for measure in wanted],
    'is_evaluated': any(group.evaluated for group in found),
    'are_alone': any(len(group.evaluated) == 1 for group in found),
    'differences': [
      [
        [results.difference(measure, base, other) for measure in wanted]
        for other in found
      ]
      for base in found
    ],
    'yardsticks': results.yardsticks(found),
    'machines': _machines(runs),
    'config': groups.differences(found),
    'aside': groups.aside(runs),
    'epochs': overlays.by_epoch(runs),
    'curves': overlays.curves(found),
    'stability': overlays.stability(found, kind.WORDS.largest),
    'largest': kind.WORDS.largest.lower(),
    'cap': charts.CAP,
    'samples': samples(members) if kind is translation else None,
    'runs': [
      [_run(member, folder) for member in group.members] for group in found
    ],
  }


def _title(found: list[groups.Group]) -> str:
  names = [group.name for group in found]
  if len(names) == 1:
    return f'{names[0]}: {len(found[0].members)} runs'
  if len(names) <= 2:
    return ' and '.join(names)
  return f'{names[0]} and {len(names) - 1} others'


def _verdicts(found: list[groups.Group]) -> list[story.Verdict]:
  """Which does best, what exploded, what is done?"""
  members = [member for group in found for member in group.members]
  words = kinds.of(members[0].run).WORDS
  exploded = [(m, story.stability(m.run, words)) for m in members]
  bad = [(m, answer) for m, answer in exploded if answer.mood == 'bad']
  unknown = sum(answer.answer == 'Unknown' for _, answer in exploded)
  said = [f'{m.name}: {a.answer.lower()}' for m, a in bad[:_NAMED]]
  if len(bad) > _NAMED:
    said.append(f'and {len(bad) - _NAMED} more')
  if unknown:
    said.append(f'{unknown} without diagnostics')
  answer = 'Unknown' if unknown == len(members) else 'No'
  if bad:
    answer = f'{len(bad)} of {len(members)} runs'
  states = [story.progress(m.run).answer.lower() for m in members]
  others = sorted({state for state in states if state != 'finished'})
  return [
    _best(found),
    story.Verdict(
      'Did anything explode?',
      answer,
      ', '.join(said),
      'bad' if bad else 'good' if not unknown else 'plain',
    ),
    story.Verdict(
      'Are they done?',
      f'{states.count("finished")} of {len(members)} finished',
      ', '.join(f'{states.count(state)} {state}' for state in others),
      'plain' if others else 'good',
    ),
  ]


def _best(found: list[groups.Group]) -> story.Verdict:
  """The group with the best mean, and how sure it is ahead of the next."""
  question = 'Which does best?'
  measure = kinds.of(found[0].members[0].run).HEADLINE
  tested = [group for group in found if group.evaluated]
  if not tested:
    answer, detail = 'Unknown', 'No run has a final evaluation yet.'
    return story.Verdict(question, answer, detail, 'plain')
  if len(results.yardsticks(found)) > 1:
    detail = 'Their numbers were measured differently: see the warning.'
    return story.Verdict(question, 'Not comparable', detail, 'bad')
  scores = results.ranked(measure, tested)
  (mean, best), *others = scores
  detail = f'{measure.label}: {mean:{measure.form}}'
  if others:
    cell = results.difference(measure, others[0][1], best)
    detail += f'; {cell.text} to {others[0][1].name}, {cell.note}'
  return story.Verdict(question, best.name, f'{detail}.', 'plain')


def _machines(runs: list[workdir.Run]) -> list[str]:
  """What the runs ran on, each kind of machine once."""
  found = []
  for run in runs:
    devices, cpus = run.versions.get('devices', []), run.versions.get('cpus')
    models = ', '.join(sorted(set(map(str, devices))))
    said = f'{len(devices)} x {models}' if devices else 'unknown'
    found.append(f'{said} ({cpus} CPUs)' if cpus else said)
  return list(dict.fromkeys(found))


def samples(members: list[groups.Member]) -> dict[str, Any]:
  """The grids of all runs next to their evaluated weights, by direction."""
  read = [(member, translation.evaluated(member.run)) for member in members]
  shown = [
    (member, step, both) for member, one in read for step, both in one.items()
  ]
  small = grids.film([grid for _, _, both in shown for grid in both])
  directions: dict[str, list[dict[str, Any]]] = {}
  for place, direction in enumerate(translation.DIRECTIONS):
    arrows = (translation.arrow(m.run, direction) for m, _, _ in shown)
    directions[kinds.agreed(arrows, direction)] = [
      {
        'member': member,
        'step': step,
        'picture': small[2 * number + place],
        **translation.directions(member.run)[place],
      }
      for number, (member, step, _) in enumerate(shown)
    ]
  return {
    'directions': directions if shown else {},
    'missing': [member.name for member, one in read if not one],
  }


def _run(member: groups.Member, folder: epath.Path) -> dict[str, Any]:
  """A run's own short section."""
  run = member.run
  return {
    'member': member,
    'summary': kinds.of(run).summary(run),
    'verdicts': page.verdicts(run),
    'link': _link(run.path / 'report.html', folder),
    'missing': [f for f in _FILES if not (run.path / f).exists()],
    'events': run.events[:_EVENTS],
    'num_events': len(run.events),
  }


def _link(target: epath.Path, folder: epath.Path) -> str:
  """A relative link to a file beside or above the page; '' where none leads."""
  if not target.exists():
    return ''
  remote = selection.is_remote(target), selection.is_remote(folder)
  if any(remote):
    if not all(remote) or target.parts[:3] != folder.parts[:3]:
      return ''
    relative = os.path.relpath(str(target), str(folder))
  else:
    relative = os.path.relpath(target, folder)
  return urllib.parse.quote(relative)
