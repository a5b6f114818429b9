"""Sets numbers of groups of runs beside each other, with their intervals.

Means over seeds have intervals of Student's t, differences Welch's; where one
seed stands alone, a part of right answers has Wilson's, of the test set alone.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vit22b_jax.report import groups, intervals, summary, task_pages
from vit22b_jax.runtime import runs


class Cell(NamedTuple):
  """A cell of a sortable table."""

  text: str
  note: str = ''  # smaller, below
  value: float | None = None  # to sort by; None comes last
  mood: str = ''  # 'good', 'bad' or ''


NOTHING = Cell('–')


def measures(several: list[runs.Run]) -> list[summary.Measure]:
  """Returns measures that any final evaluation has, under shared titles."""
  labels: dict[summary.Measure, list[str]] = {}
  for run in several:
    for measure in task_pages.for_task(run).measures(run):
      labels.setdefault(measure._replace(label=''), []).append(measure.label)
  return [
    measure._replace(label=task_pages.common_title(found, measure.key))
    for measure, found in labels.items()
    if any(run.evaluation.get(measure.key) is not None for run in several)
  ]


def validated_by(several: list[runs.Run]) -> summary.Measure:
  """Returns the measure of validations that runs have recorded, for all."""
  known = task_pages.for_task(several[0]).VALIDATIONS
  keys = {key for run in several for row in run.metrics for key in row}
  return next((measure for measure in known if measure.key in keys), known[0])


def protocols(found: Iterable[groups.Group]) -> dict[str, list[str]]:
  """Returns how numbers were measured, each with the names of its groups."""
  names: dict[str, list[str]] = {}
  for group in found:
    for protocol in sorted(_protocols(group)):
      names.setdefault(protocol, []).append(group.name)
  return names


def columns(
  wanted: list[summary.Measure], validated: summary.Measure
) -> list[str]:
  """Returns heads of the table of final numbers, after the name's."""
  labels = [measure.label for measure in (*wanted, validated)]
  return ['runs', *labels, 'steps', 'parameters', 'events', 'images/s']


def row(
  group: groups.Group,
  wanted: list[summary.Measure],
  validated: summary.Measure,
) -> list[Cell]:
  """Returns cells of a group's line."""
  several = [member.run for member in group.members]
  sizes = [run.versions.get('parameters') for run in several]
  rates = [rate for _, rate in map(summary.throughput, several) if rate]
  rate = float(np.median(rates)) if rates else None
  return [
    _runs(group),
    *[_score(m, _having(m, group.evaluated)) for m in wanted],
    _validation(validated, several),
    _range([run.last_step for run in several], '{:,}'.format),
    _range([size for size in sizes if size is not None], summary.si),
    _events(several),
    Cell(summary.rate_text(rate), '', rate) if rate else NOTHING,
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
  if not before or not after:
    return Cell('–', 'not measured')
  change, interval = intervals.welch(before, after)
  text = _signed(f'{change:+{measure.form}}')
  if interval is None:
    return Cell(text, _why_none(before, after), change)
  ends = [f'{end:{measure.form}}' for end in interval]
  said = _signed(_unbroken(f'[{", ".join(ends)}]'))
  low, high = interval
  if not (low > 0 or high < 0):
    return Cell(text, f'{said} includes 0', change)
  better = change * measure.sign > 0
  word, mood = ('better', 'good') if better else ('worse', 'bad')
  return Cell(text, f'{said} excludes 0: {word}', change, mood)


def values(measure: summary.Measure, group: groups.Group) -> list[float]:
  """Returns a value for each seed that was evaluated, and by this measure."""
  found = _having(measure, group.evaluated)
  return [measure.scale * run.evaluation[measure.key] for run in found]


def ranked(
  measure: summary.Measure, found: Iterable[groups.Group]
) -> list[tuple[float, groups.Group]]:
  """Returns evaluated groups with their means, best first; NaN comes last."""
  means = [(float(np.mean(values(measure, g))), g) for g in found]
  return sorted(
    means,
    key=lambda one: np.nan_to_num(-measure.sign * one[0], nan=np.inf),
  )


def _having(
  measure: summary.Measure, several: list[runs.Run]
) -> list[runs.Run]:
  return [run for run in several if run.evaluation.get(measure.key) is not None]


def _signed(text: str) -> str:
  """Returns text with the minus sign that is as wide as the plus."""
  return text.replace('-', '−')


def _unbroken(text: str) -> str:
  return text.replace(' ', '\u00a0')


def _protocols(group: groups.Group) -> set[str]:
  """Returns how those runs were measured that have a number."""
  found = set()
  for run in group.evaluated:
    pages = task_pages.for_task(run)
    if any(_having(measure, [run]) for measure in pages.measures(run)):
      found.add(pages.eval_protocol(run))
  return found


def _why_none(before: Sequence[float], after: Sequence[float]) -> str:
  if not np.isfinite([*before, *after]).all():
    return 'not finite'
  one = min(len(before), len(after)) < 2
  return f'no interval: {"one seed" if one else "seeds agree"}'


def _runs(group: groups.Group) -> Cell:
  members = group.members
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
    note = _unbroken(f'± {mean - found[0]:{measure.form}}')
  return Cell(_signed(f'{mean:{measure.form}}'), _signed(note), mean)


def _validation(measure: summary.Measure, several: list[runs.Run]) -> Cell:
  recorded = [run.metric(measure.key) for run in several]
  last = [(int(s[-1]), measure.scale * v[-1]) for s, v in recorded if len(s)]
  if not last:
    return NOTHING
  mean = float(np.mean([value for _, value in last]))
  steps = {step for step, _ in last}
  note = f'step {steps.pop():,}' if len(steps) == 1 else 'of several steps'
  return Cell(f'{mean:{measure.form}}', _unbroken(note), mean)


def _range(numbers: Sequence[float], form) -> Cell:
  if not numbers:
    return NOTHING
  low, high = min(numbers), max(numbers)
  text = form(high) if low == high else f'{form(low)} to {form(high)}'
  return Cell(text, '', high)


def _events(several: list[runs.Run]) -> Cell:
  if not any(run.events or run.diagnostics for run in several):
    return Cell('–', 'not recorded')
  count = collections.Counter(e['kind'] for run in several for e in run.events)
  serious = count['explosion'] + count['non_finite']
  words = {'explosion': 'explosion' + 's' * (count['explosion'] > 1)}
  words |= {'non_finite': 'not finite', 'transient': 'transient'}
  said = [f'{count[k]:,} {word}' for k, word in words.items() if count[k]]
  text = said.pop(0) if serious else 'none'
  if serious and len(several) > 1:
    hit = sum(run.onset is not None for run in several)
    said.insert(0, f'in {hit} of {len(several)}')
  return Cell(text, ', '.join(said), serious, 'bad' if serious else '')
