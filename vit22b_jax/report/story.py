"""A run of any task in a few sentences and numbers: what to know in seconds.

What only one task can tell is in the module of its kind: see `kinds`.
"""

from typing import Any, NamedTuple

import numpy as np

from vit22b_jax import durations
from vit22b_jax.report import workdir


class Fact(NamedTuple):
  """A headline number."""

  label: str
  value: str
  note: str = ''


class Verdict(NamedTuple):
  """An answer; mood is 'good', 'bad' or 'plain'."""

  question: str
  answer: str
  detail: str
  mood: str


class Words(NamedTuple):
  """What a task calls the things that every run records.

  Attributes:
    largest: column max_logit of diagnostics.csv.
    rate: perf/images_per_second.
    parameters: whose they are.
  """

  largest: str
  rate: str
  parameters: str = ''


class Measure(NamedTuple):
  """A number of the final evaluation, as comparisons show it.

  Attributes:
    key: of eval.json.
    label: what it is.
    form: format of a value, such as '.2f'.
    scale: what it is multiplied with, 100 for per cent.
    sign: 1 where more is better, -1 where less is.
    is_part: whether it is a part of the test images that are right.
  """

  key: str
  label: str
  form: str
  scale: float = 1.0
  sign: int = 1
  is_part: bool = False


def facts(run: workdir.Run, words: Words) -> list[Fact]:
  """How long the run was, how fast and how large the model."""
  found = [Fact('Steps', f'{run.last_step:,}', _batch_note(run))]
  seconds, rate = throughput(run)
  if rate:
    found += [
      Fact('Training time', duration(seconds), 'steps alone'),
      Fact(words.rate, f'{rate:,.{0 if rate >= 100 else 1}f}', 'median'),
    ]
  _, mfu = run.metric('perf/mfu')
  if np.isfinite(mfu).any():
    part = percent(float(np.nanmedian(mfu)))
    found.append(Fact('FLOPs utilisation', part, 'of the model, median'))
  if 'parameters' in run.versions:
    size = si(run.versions['parameters'])
    found.append(Fact('Parameters', size, words.parameters))
  return found


def percent(part: float) -> str:
  """0.123 -> 12.3 %."""
  return f'{100 * part:.1f}\u202f%' if np.isfinite(part) else str(part)


def si(number: float) -> str:
  """5628490 -> 5.63 M."""
  for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.3g} {unit}'
  return f'{number:g}'


def duration(seconds: float) -> str:
  """3725 -> 1 h 02 min."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02d} min'
  if minutes >= 10:
    return f'{minutes} min'
  return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


def weights_note(evaluation: dict[str, Any]) -> str:
  """Which weights a final evaluation is of."""
  averaged = 'averaged ' if evaluation['weights'] == 'ema' else ''
  return f'{averaged}weights of step {evaluation["step"]:,}'


def _batch_note(run: workdir.Run) -> str:
  return f'batch {run.config["batch_size"]:,}'


def throughput(run: workdir.Run) -> tuple[float, float]:
  """Seconds of training and median images a second; 0, 0 when unknown."""
  steps, rates = run.metric('perf/images_per_second')
  usable = np.isfinite(rates) & (rates > 0)
  if not usable.any():
    return 0.0, 0.0
  rate = float(np.median(rates[usable]))
  done = np.diff(steps, prepend=0) * run.config['batch_size']
  return float((done / np.where(usable, rates, rate)).sum()), rate


def planned_steps(run: workdir.Run) -> int | None:
  """Length of the run in steps; None before an epoch's length is known."""
  epochs = [r['step'] / r['epoch'] for r in run.metrics if r.get('epoch')]
  if not epochs and 'epoch' in str(run.config['duration']):
    return None
  return durations.steps(
    run.config['duration'], steps_per_epoch=round(epochs[-1]) if epochs else 1
  )


def progress(run: workdir.Run) -> Verdict:
  """Is it done?"""
  question, planned = 'Is it done?', planned_steps(run)
  of = f' of {planned:,}' if planned else ''
  step = f'Step {run.last_step:,}{of}'
  halted = [e for e in run.events if e['action'] == 'halt']
  if halted and halted[-1]['step'] >= run.last_step:
    kind = halted[-1]['kind'].replace('_', '-')
    detail = f'{step}: {kind}. The state before it is saved.'
    return Verdict(question, 'Halted', detail, 'bad')
  tested = run.config.get('eval', {}).get('test', True)
  if not tested and planned and run.last_step >= planned:
    detail = f'{step}; eval.test is off.'
    return Verdict(question, 'Finished', detail, 'good')
  if not run.evaluation:
    detail = f'{step}: running or stopped. The same command resumes it.'
    return Verdict(question, 'Not finished', detail, 'plain')
  if planned and run.last_step < planned:
    return Verdict(question, 'Ended early', f'{step}, then tested.', 'plain')
  return Verdict(question, 'Finished', f'{step}, then tested.', 'good')


def by_loss(run: workdir.Run, question: str) -> Verdict:
  """What the training loss says, before any evaluation."""
  _, loss = run.metric('train/loss')
  if not len(loss):
    return Verdict(question, 'Unknown', 'Nothing recorded yet.', 'plain')
  return Verdict(
    question,
    f'Training loss {loss[-1]:.3g}',
    f'From {loss[0]:.3g}; no evaluation yet.',
    'plain' if np.isfinite(loss[-1]) else 'bad',
  )


def stability(run: workdir.Run, words: Words) -> Verdict:
  """Did anything explode, and where first?"""
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
  bad = np.stack([~np.isfinite(table[c]) for c in _judged(table)])
  if bad.any():
    row = int(bad.any(0).argmax())
    column = _judged(table)[int(bad[:, row].argmax())]
    return Verdict(
      question,
      f'Not finite, first at step {table["step"][row]:,.0f}',
      f'{column} is {table[column][row]}.',
      'bad',
    )
  return Verdict(question, 'No', _peaks(run, words), 'good')


def _judged(table: dict[str, Any]) -> list[str]:
  """Columns whose blanks can't stem from a setting."""
  return [c for c in table if '/' not in c and c != 'step']


def _sentence(event: dict[str, Any]) -> str:
  where = f'In {workdir.place(event)}. ' if event['layer'] else ''
  moved = event['moved_first']
  what = f'What moved first: {moved}. ' if moved else ''
  return f'{where}{what}Policy: {event["action"].replace("_", " ")}.'


def _peaks(run: workdir.Run, words: Words) -> str:
  table = run.diagnostics
  transients = sum(e['kind'] == 'transient' for e in run.events)
  note = f' {transients} start-up transient(s).' if transients else ''
  return (
    f'{words.largest} {table["max_logit"].max():,.4g}, largest gradient entry'
    f' {table["max_abs_grad"].max():,.4g}, over {len(table["step"]):,}'
    f' steps.{note}'
  )
