"""Sums a run of any task up in a few sentences and numbers.

What only one task can tell is in the module of its pages: see `task_pages`.
"""

from typing import Any, NamedTuple

import numpy as np

from vit22b_jax import durations
from vit22b_jax.runtime import runs


class Fact(NamedTuple):
  """A headline number."""

  label: str
  value: str
  note: str = ''


class Verdict(NamedTuple):
  """An answer to a question; mood is 'good', 'bad' or 'plain'."""

  question: str
  answer: str
  detail: str
  mood: str


class Words(NamedTuple):
  """A task's names of things that every run records.

  Attributes:
    largest: column max_logit of diagnostics.csv.
    rate: perf/images_per_second.
    parameters: the networks that have them.
  """

  largest: str
  rate: str
  parameters: str = ''


class Measure(NamedTuple):
  """A number of the final evaluation, as comparisons show it.

  Attributes:
    key: of eval.json.
    label: its name for readers.
    form: format of a value, such as '.2f'.
    scale: it is multiplied by this, 100 for percent.
    sign: 1 where more is better, -1 where less is.
    is_part: whether it is the part of the test images that are right.
  """

  key: str
  label: str
  form: str
  scale: float = 1.0
  sign: int = 1
  is_part: bool = False


def facts(run: runs.Run, words: Words) -> list[Fact]:
  """Returns how long the run was, how fast and how large the model."""
  batch = f'batch {run.config["batch_size"]:,}'
  found = [Fact('Steps', f'{run.last_step:,}', batch)]
  seconds, rate = throughput(run)
  if rate:
    found += [
      Fact(
        'Training time',
        durations.in_words(seconds),
        'training steps, without validation',
      ),
      Fact(words.rate, f'{rate:,.{0 if rate >= 100 else 1}f}', 'median'),
    ]
  _, mfu = run.metric('perf/mfu')
  if np.isfinite(mfu).any():
    part = percent(float(np.nanmedian(mfu)))
    found.append(Fact('FLOPs utilization', part, 'of the model, median'))
  if 'parameters' in run.versions:
    size = si(run.versions['parameters'])
    found.append(Fact('Parameters', size, words.parameters))
  return found


def percent(part: float) -> str:
  """Returns '12.3 %' for 0.123."""
  return f'{100 * part:.1f}\u202f%' if np.isfinite(part) else str(part)


def si(number: float) -> str:
  """Returns '5.63 M' for 5628490."""
  for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.3g} {unit}'
  return f'{number:g}'


def weights_note(evaluation: dict[str, Any]) -> str:
  """Returns the name of the weights that were evaluated."""
  averaged = 'averaged ' if evaluation['weights'] == 'ema' else ''
  return f'{averaged}weights of step {evaluation["step"]:,}'


def throughput(run: runs.Run) -> tuple[float, float]:
  """Returns seconds of training and median images a second, or 0, 0."""
  steps, rates = run.metric('perf/images_per_second')
  usable = np.isfinite(rates) & (rates > 0)
  if not usable.any():
    return 0.0, 0.0
  rate = float(np.median(rates[usable]))
  done = np.diff(steps, prepend=0) * run.config['batch_size']
  return float((done / np.where(usable, rates, rate)).sum()), rate


def planned_steps(run: runs.Run) -> int | None:
  """Returns the run's length; None before an epoch's length is known."""
  duration, epoch = run.config['duration'], run.steps_per_epoch
  if epoch is None and 'epoch' in str(duration):
    return None
  return durations.steps(duration, steps_per_epoch=epoch or 1)


def progress(run: runs.Run) -> Verdict:
  """Answers whether the run is done."""
  question, planned = 'Is it done?', planned_steps(run)
  of = f' of {planned:,}' if planned else ''
  step = f'Step {run.last_step:,}{of}'
  halted = [e for e in run.events if e['action'] == 'halt']
  if halted and halted[-1]['step'] >= run.last_step:
    kind = halted[-1]['kind'].replace('_', '-')
    detail = f'{step}: {kind}. The state before it is saved.'
    return Verdict(question, 'Halted', detail, 'bad')
  tested = run.choices.get('eval.test', True)
  if not tested and planned and run.last_step >= planned:
    detail = f'{step}; eval.test is off.'
    return Verdict(question, 'Finished', detail, 'good')
  if not run.evaluation:
    detail = f'{step}: running or stopped. The same command resumes it.'
    return Verdict(question, 'Not finished', detail, 'plain')
  if planned and run.last_step < planned:
    return Verdict(question, 'Ended early', f'{step}, then tested.', 'plain')
  return Verdict(question, 'Finished', f'{step}, then tested.', 'good')


def by_loss(run: runs.Run, question: str) -> Verdict:
  """Answers by the training loss, before any evaluation."""
  _, loss = run.metric('train/loss')
  if not len(loss):
    return Verdict(question, 'Unknown', 'Nothing recorded yet.', 'plain')
  return Verdict(
    question,
    f'Training loss {loss[-1]:.3g}',
    f'From {loss[0]:.3g}; no evaluation yet.',
    'plain' if np.isfinite(loss[-1]) else 'bad',
  )


def stability(run: runs.Run, words: Words) -> Verdict:
  """Answers whether anything exploded, and where first."""
  question = 'Did anything explode?'
  if run.onset:
    count = sum(e['kind'] != 'transient' for e in run.events)
    more = f' {count:,} events in all.' if count > 1 else ''
    kind = 'Yes' if run.onset['kind'] == 'explosion' else 'Not finite'
    return Verdict(
      question,
      f'{kind}, first at step {run.onset["step"]:,}',
      f'{_sentence(run.onset)}{more}',
      'bad',
    )
  table = run.diagnostics
  if not table:
    return Verdict(question, 'Unknown', 'No diagnostics recorded.', 'plain')
  # Blanks of the others may stem from a setting.
  judged = [c for c in table if '/' not in c and c != 'step']
  bad = np.array([~np.isfinite(table[c]) for c in judged])
  if bad.any():
    row = int(bad.any(0).argmax())
    column = judged[int(bad[:, row].argmax())]
    return Verdict(
      question,
      f'Not finite, first at step {table["step"][row]:,.0f}',
      f'{column} is {table[column][row]}.',
      'bad',
    )
  return Verdict(question, 'No', _peaks(run, words), 'good')


def _sentence(event: dict[str, Any]) -> str:
  where = f'In {place(event)}. ' if event['layer'] else ''
  moved = event['moved_first']
  what = f'What moved first: {moved}. ' if moved else ''
  return f'{where}{what}Policy: {event["action"].replace("_", " ")}.'


def _peaks(run: runs.Run, words: Words) -> str:
  table = run.diagnostics
  transients = sum(e['kind'] == 'transient' for e in run.events)
  note = f' {transients} start-up transient(s).' if transients else ''
  said = [
    f'{name} {table[column].max():,.4g}'
    for name, column in (
      (words.largest, 'max_logit'),
      ('largest gradient entry', 'max_abs_grad'),
    )
    if column in table
  ]
  return ', '.join([*said, f'over {len(table["step"]):,} steps.{note}'])


def text(value: Any) -> str:
  """Returns a value of a config or of versions, for readers."""
  several = isinstance(value, list | tuple)
  return ', '.join(map(str, value)) if several else str(value)


def place(event: dict[str, Any]) -> str:
  """Returns where an event happened; '' when no layer stands out."""
  layer = (event['layer'] or '').removeprefix('block_')
  return f'block {layer}' if layer.isdigit() else layer


def details(event: dict[str, Any]) -> str:
  """Returns what else an event holds: values, thresholds, z-scores, message."""
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
