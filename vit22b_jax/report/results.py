"""Numbers of groups of runs beside each other, with what they may differ by.

Means over seeds have intervals of Student's t, differences Welch's; where one
seed stands alone, a part of right answers has Wilson's, of the test set alone.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vit22b_jax.report import groups, intervals, kinds, story, workdir


class Cell(NamedTuple):
  """A cell of a sortable table.

  Attributes:
    text: what it says.
    note: what stands below it, smaller.
    value: what sorting goes by; None comes last.
    mood: 'good', 'bad' or '' as in `story.Verdict`.
  """

  text: str
  note: str = ''
  value: float | None = None
  mood: str = ''


NOTHING = Cell('–')


def measures(runs: list[workdir.Run]) -> list[story.Measure]:
  """The measures of the final evaluation, named as all the runs name them.

  None while no run has one.
  """
  if not any(run.evaluation for run in runs):
    return []
  several = zip(*(kinds.of(run).measures(run) for run in runs), strict=True)
  return [
    same[0]._replace(label=kinds.agreed((m.label for m in same), same[0].key))
    for same in several
  ]


def yardsticks(found: Iterable[groups.Group]) -> dict[str, list[str]]:
  """What was measured with what: yardstick -> names of groups."""
  names: dict[str, list[str]] = {}
  for group in found:
    for yardstick in sorted(_yardsticks(group)):
      names.setdefault(yardstick, []).append(group.name)
  return names


def columns(runs: list[workdir.Run]) -> list[str]:
  """Heads of the table of final numbers, after the name's."""
  last = kinds.of(runs[0]).VALIDATION.label
  labels = [measure.label for measure in measures(runs)]
  return ['runs', *labels, last, 'steps', 'parameters', 'events', 'images/s']


def row(
  members: list[groups.Member], group: groups.Group, wanted: list[story.Measure]
) -> list[Cell]:
  """Cells of a group's line, or of the line of one of its members.

  Args:
    members: of whom it tells.
    group: theirs.
    wanted: measures of the final evaluation.
  """
  runs = [member.run for member in members]
  counted = [r for r in runs if r.evaluation]
  if len(runs) > 1:
    counted = [member.run for member in group.evaluated]
  return [
    _runs(members, group),
    *[_score(measure, counted) for measure in wanted],
    _validation(runs),
    _range([run.last_step for run in runs], '{:,}'.format),
    _range(
      [r.versions['parameters'] for r in runs if 'parameters' in r.versions],
      story.si,
    ),
    _events(runs),
    _rate(runs),
  ]


def difference(
  measure: story.Measure, base: groups.Group, other: groups.Group
) -> Cell:
  """How far a group's mean is from the baseline's, and whether that is 0."""
  if not base.evaluated or not other.evaluated:
    return Cell('–', 'not evaluated')
  if not alike(base, other):
    return Cell('–', 'measured otherwise')
  before, after = values(measure, base), values(measure, other)
  change, interval = intervals.welch(before, after)
  text = signed(f'{change:+{measure.form}}')
  if interval is None:
    return Cell(text, _why_none(before, after), change)
  ends = [f'{end:{measure.form}}' for end in interval]
  said = _together(f'[{", ".join(ends)}]')
  if not interval.excludes_zero:
    return Cell(text, signed(f'{said} includes 0'), change)
  better = change * measure.sign > 0
  word, mood = ('better', 'good') if better else ('worse', 'bad')
  return Cell(text, signed(f'{said} excludes 0: {word}'), change, mood)


def alike(base: groups.Group, other: groups.Group) -> bool:
  """Whether both were measured with one and the same yardstick."""
  return len(_yardsticks(base) | _yardsticks(other)) == 1


def values(measure: story.Measure, group: groups.Group) -> list[float]:
  """A value for each seed that was evaluated."""
  return [
    measure.scale * m.run.evaluation[measure.key] for m in group.evaluated
  ]


def ranked(
  measure: story.Measure, found: Iterable[groups.Group]
) -> list[tuple[float, groups.Group]]:
  """Evaluated groups with their means, best first; NaN comes last."""
  means = [(float(np.mean(values(measure, g))), g) for g in found]
  return sorted(
    means,
    key=lambda one: (np.isnan(one[0]), -measure.sign * np.nan_to_num(one[0])),
  )


def signed(text: str) -> str:
  """With the minus sign that is as wide as the plus."""
  return text.replace('-', '−')


def _together(text: str) -> str:
  """Text that no line breaks."""
  return text.replace(' ', '\u00a0')


def _yardsticks(group: groups.Group) -> set[str]:
  return {kinds.of(m.run).yardstick(m.run) for m in group.evaluated}


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
    return Cell('1', f'{seed}, {story.progress(run).answer.lower()}', 1)
  notes = [f'seed {seed} repeated' for seed in group.repeated]
  tested = sum(bool(member.run.evaluation) for member in members)
  if tested < len(members):
    notes.insert(0, _together(f'{tested} evaluated'))
  return Cell(str(len(members)), ', '.join(notes), len(members))


def _score(measure: story.Measure, runs: list[workdir.Run]) -> Cell:
  if not runs:
    return NOTHING
  parts = [run.evaluation[measure.key] for run in runs]
  scaled = [measure.scale * part for part in parts]
  note, mean = '', float(np.mean(scaled))
  if len(runs) == 1 and measure.is_part:
    found = intervals.wilson(parts[0], runs[0].evaluation['num_examples'])
    low, high = (f'{measure.scale * v:{measure.form}}' for v in found)
    note = f'test set: {_together(f"{low} to {high}")}'
  elif found := intervals.student(scaled):
    note = _together(f'± {mean - found.low:{measure.form}}')
  return Cell(signed(f'{mean:{measure.form}}'), signed(note), mean)


def _validation(runs: list[workdir.Run]) -> Cell:
  measure = kinds.of(runs[0]).VALIDATION
  recorded = [run.metric(measure.key) for run in runs]
  last = [measure.scale * v[-1] for _, v in recorded if len(v)]
  if not last:
    return NOTHING
  mean = float(np.mean(last))
  steps = {int(steps[-1]) for steps, _ in recorded if len(steps)}
  note = 'of several steps'
  if len(steps) == 1:
    note = _together(f'step {steps.pop():,}')
  return Cell(f'{mean:{measure.form}}', note, mean)


def _range(numbers: Sequence[float], form) -> Cell:
  if not numbers:
    return NOTHING
  low, high = min(numbers), max(numbers)
  text = form(high) if low == high else f'{form(low)} to {form(high)}'
  return Cell(text, '', high)


def _events(runs: list[workdir.Run]) -> Cell:
  if not any(run.events or run.diagnostics for run in runs):
    return Cell('–', 'not recorded')
  count = {
    kind: sum(e['kind'] == kind for run in runs for e in run.events)
    for kind in ('explosion', 'non_finite', 'transient')
  }
  serious = count['explosion'] + count['non_finite']
  hit = sum(run.onset is not None for run in runs)
  notes = [f'in {hit} of {len(runs)}'] if serious and len(runs) > 1 else []
  plural = 's' if count['explosion'] > 1 else ''
  words = {
    'explosion': f'explosion{plural}',
    'non_finite': 'not finite',
    'transient': 'transient',
  }
  said = [f'{count[k]:,} {word}' for k, word in words.items() if count[k]]
  text = said.pop(0) if serious else 'none'
  return Cell(text, ', '.join(notes + said), serious, 'bad' if serious else '')


def _rate(runs: list[workdir.Run]) -> Cell:
  rates = [rate for _, rate in map(story.throughput, runs) if rate]
  if not rates:
    return NOTHING
  rate = float(np.median(rates))
  return Cell(f'{rate:,.{0 if rate >= 100 else 1}f}', '', rate)
