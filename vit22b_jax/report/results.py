"""Sets numbers of groups of runs beside each other, with their intervals.

Means over seeds have intervals of Student's t, differences Welch's; where one
seed stands alone, a part of right answers has Wilson's, of the test set alone.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vit22b_jax.report import groups, intervals, summary, task_pages
from vit22b_jax.runtime import runs


class Cell(NamedTuple):
  """A cell of a sortable table.

  Attributes:
    text: its text.
    note: the smaller text below it.
    value: the number to sort by; None comes last.
    mood: 'good', 'bad' or '' as in `summary.Verdict`.
  """

  text: str
  note: str = ''
  value: float | None = None
  mood: str = ''


NOTHING = Cell('–')


def measures(several: list[runs.Run]) -> list[summary.Measure]:
  """Returns measures that all final evaluations have, under shared titles."""
  evaluated = [run for run in several if run.evaluation]
  if not evaluated:
    return []
  found = [task_pages.for_task(run).measures(run) for run in several]
  return [
    same[0]._replace(
      label=task_pages.common_title([m.label for m in same], same[0].key)
    )
    for same in zip(*found, strict=True)
    if all(run.evaluation.get(same[0].key) is not None for run in evaluated)
  ]


def protocols(found: Iterable[groups.Group]) -> dict[str, list[str]]:
  """Returns how numbers were measured, each with the names of its groups."""
  names: dict[str, list[str]] = {}
  for group in found:
    for protocol in sorted(_protocols(group)):
      names.setdefault(protocol, []).append(group.name)
  return names


def columns(
  several: list[runs.Run], wanted: list[summary.Measure]
) -> list[str]:
  """Returns heads of the table of final numbers, after the name's."""
  last = task_pages.for_task(several[0]).VALIDATION.label
  labels = [measure.label for measure in wanted]
  return ['runs', *labels, last, 'steps', 'parameters', 'events', 'images/s']


def row(
  members: list[groups.Member],
  group: groups.Group,
  wanted: list[summary.Measure],
) -> list[Cell]:
  """Returns cells of a group's line, or of the line of one of its members.

  Args:
    members: runs of the line.
    group: their group.
    wanted: measures of the final evaluation.
  """
  several = [member.run for member in members]
  counted = [r for r in several if r.evaluation]
  if len(several) > 1:
    counted = [member.run for member in group.evaluated]
  sizes = [run.versions.get('parameters') for run in several]
  return [
    _runs(members, group),
    *[_score(measure, counted) for measure in wanted],
    _validation(several),
    _range([run.last_step for run in several], '{:,}'.format),
    _range([size for size in sizes if size is not None], summary.si),
    _events(several),
    _rate(several),
  ]


def difference(
  measure: summary.Measure, base: groups.Group, other: groups.Group
) -> Cell:
  """Returns a group's mean less the baseline's, with its interval."""
  if not base.evaluated or not other.evaluated:
    return Cell('–', 'not evaluated')
  if len(_protocols(base) | _protocols(other)) > 1:
    return Cell('–', 'measured otherwise')
  before, after = values(measure, base), values(measure, other)
  change, interval = intervals.welch(before, after)
  text = signed(f'{change:+{measure.form}}')
  if interval is None:
    return Cell(text, _why_none(before, after), change)
  ends = [f'{end:{measure.form}}' for end in interval]
  said = _unbroken(f'[{", ".join(ends)}]')
  if not interval.excludes_zero:
    return Cell(text, signed(f'{said} includes 0'), change)
  better = change * measure.sign > 0
  word, mood = ('better', 'good') if better else ('worse', 'bad')
  return Cell(text, signed(f'{said} excludes 0: {word}'), change, mood)


def values(measure: summary.Measure, group: groups.Group) -> list[float]:
  """Returns a value for each seed that was evaluated."""
  found = (member.run.evaluation for member in group.evaluated)
  return [measure.scale * evaluation[measure.key] for evaluation in found]


def ranked(
  measure: summary.Measure, found: Iterable[groups.Group]
) -> list[tuple[float, groups.Group]]:
  """Returns evaluated groups with their means, best first; NaN comes last."""
  means = [(float(np.mean(values(measure, g))), g) for g in found]
  return sorted(
    means,
    key=lambda one: (np.isnan(one[0]), -measure.sign * np.nan_to_num(one[0])),
  )


def signed(text: str) -> str:
  """Returns text with the minus sign that is as wide as the plus."""
  return text.replace('-', '−')


def _unbroken(text: str) -> str:
  return text.replace(' ', '\u00a0')


def _protocols(group: groups.Group) -> set[str]:
  tested = [member.run for member in group.evaluated]
  return {task_pages.for_task(run).eval_protocol(run) for run in tested}


def _why_none(before: Sequence[float], after: Sequence[float]) -> str:
  if not np.isfinite([*before, *after]).all():
    return 'not finite'
  if min(len(before), len(after)) < 2:
    return 'no interval: one seed'
  return 'no interval: seeds agree'


def _runs(members: list[groups.Member], group: groups.Group) -> Cell:
  if len(members) == 1:
    run = members[0].run
    seed = f'seed {run.config.get("seed", "unknown")}'
    return Cell('1', f'{seed}, {summary.progress(run).answer.lower()}', 1)
  notes = [f'seed {seed} repeated' for seed in group.repeated]
  tested = sum(bool(member.run.evaluation) for member in members)
  if tested < len(members):
    notes.insert(0, _unbroken(f'{tested} evaluated'))
  return Cell(str(len(members)), ', '.join(notes), len(members))


def _score(measure: summary.Measure, several: list[runs.Run]) -> Cell:
  if not several:
    return NOTHING
  parts = [run.evaluation[measure.key] for run in several]
  scaled = [measure.scale * part for part in parts]
  note, mean = '', float(np.mean(scaled))
  if len(several) == 1 and measure.is_part:
    count = several[0].evaluation['num_examples']
    if found := intervals.wilson(parts[0], count):
      low, high = (f'{measure.scale * v:{measure.form}}' for v in found)
      note = f'test set: {_unbroken(f"{low} to {high}")}'
  elif found := intervals.student(scaled):
    note = _unbroken(f'± {mean - found.low:{measure.form}}')
  return Cell(signed(f'{mean:{measure.form}}'), signed(note), mean)


def _validation(several: list[runs.Run]) -> Cell:
  measure = task_pages.for_task(several[0]).VALIDATION
  recorded = [run.metric(measure.key) for run in several]
  last = [measure.scale * v[-1] for _, v in recorded if len(v)]
  if not last:
    return NOTHING
  mean = float(np.mean(last))
  steps = {int(steps[-1]) for steps, _ in recorded if len(steps)}
  note = 'of several steps'
  if len(steps) == 1:
    note = _unbroken(f'step {steps.pop():,}')
  return Cell(f'{mean:{measure.form}}', note, mean)


def _range(numbers: Sequence[float], form) -> Cell:
  if not numbers:
    return NOTHING
  low, high = min(numbers), max(numbers)
  text = form(high) if low == high else f'{form(low)} to {form(high)}'
  return Cell(text, '', high)


def _events(several: list[runs.Run]) -> Cell:
  if not any(run.events or run.diagnostics for run in several):
    return Cell('–', 'not recorded')
  count = {
    kind: sum(e['kind'] == kind for run in several for e in run.events)
    for kind in ('explosion', 'non_finite', 'transient')
  }
  serious = count['explosion'] + count['non_finite']
  hit = sum(run.onset is not None for run in several)
  notes = (
    [f'in {hit} of {len(several)}'] if serious and len(several) > 1 else []
  )
  plural = 's' if count['explosion'] > 1 else ''
  words = {
    'explosion': f'explosion{plural}',
    'non_finite': 'not finite',
    'transient': 'transient',
  }
  said = [f'{count[k]:,} {word}' for k, word in words.items() if count[k]]
  text = said.pop(0) if serious else 'none'
  return Cell(text, ', '.join(notes + said), serious, 'bad' if serious else '')


def _rate(several: list[runs.Run]) -> Cell:
  rates = [rate for _, rate in map(summary.throughput, several) if rate]
  if not rates:
    return NOTHING
  rate = float(np.median(rates))
  return Cell(f'{rate:,.{0 if rate >= 100 else 1}f}', '', rate)
