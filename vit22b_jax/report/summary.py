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
  """A task's names of things that every run records."""

  largest: str  # column max_logit of diagnostics.csv
  rate: str  # perf/images_per_second
  parameters: str = ''  # the networks that have them


class Measure(NamedTuple):
  """A number of the final evaluation, as comparisons show it."""

  key: str  # of eval.json
  label: str
  form: str  # such as '.2f'
  scale: float = 1.0  # 100 for percent
  sign: int = 1  # -1 where less is better
  is_part: bool = False  # of the test images, those that are right


def facts(run: runs.Run, words: Words) -> list[Fact]:
  """Returns how long the run was, how fast and how large the model."""
  batch = f'batch {run.config["batch_size"]:,}'
  found = [Fact('Steps', f'{run.last_step:,}', batch)]
  seconds, rate = throughput(run)
  if rate:
    note = 'training steps, without validation'
    found.append(Fact('Training time', durations.in_words(seconds), note))
    found.append(Fact(words.rate, rate_text(rate), 'median'))
  _, mfu = run.metric('perf/mfu')
  if np.isfinite(mfu).any():
    part = percent(float(np.nanmedian(mfu)))
    found.append(Fact('FLOPs utilization', part, 'of the model, median'))
  if parameters := run.versions.get('parameters'):
    found.append(Fact('Parameters', si(parameters), words.parameters))
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


def rate_text(rate: float) -> str:
  """Returns images a second, a decimal where they are few."""
  return f'{rate:,.{0 if rate >= 100 else 1}f}'


def throughput(run: runs.Run) -> tuple[float, float]:
  """Returns seconds of training and median images a second, or 0, 0."""
  steps, rates = run.metric('perf/images_per_second')
  usable = np.isfinite(rates) & (rates > 0)
  if not usable.any():
    return 0.0, 0.0
  rate = float(np.median(rates[usable]))
  done = np.diff(steps, prepend=0) * run.config['batch_size']
  return float((done / np.where(usable, rates, rate)).sum()), rate


def progress(run: runs.Run) -> Verdict:
  """Answers whether the run is done."""
  duration, epoch = run.config['duration'], run.steps_per_epoch
  planned = None  # before an epoch's length is known
  if epoch or 'epoch' not in str(duration):
    planned = durations.steps(duration, steps_per_epoch=epoch or 1)
  step = f'Step {run.last_step:,}' + (f' of {planned:,}' if planned else '')
  halted = [e for e in run.events if e['action'] == 'halt']
  reached = not planned or run.last_step >= planned
  if halted and halted[-1]['step'] >= run.last_step:
    kind = halted[-1]['kind'].replace('_', '-')
    detail = f'{step}: {kind}. The state before it is saved.'
    answer, mood = 'Halted', 'bad'
  elif planned and reached and not run.choices.get('eval.test', True):
    answer, detail, mood = 'Finished', f'{step}; eval.test is off.', 'good'
  elif not run.evaluation:
    detail = f'{step}: running or stopped. The same command resumes it.'
    answer, mood = 'Not finished', 'plain'
  else:
    detail, mood = f'{step}, then tested.', 'good' if reached else 'plain'
    answer = 'Finished' if reached else 'Ended early'
  return Verdict('Is it done?', answer, detail, mood)


def by_loss(run: runs.Run, question: str) -> Verdict:
  """Answers by the training loss, before any evaluation."""
  _, loss = run.metric('train/loss')
  if not len(loss):
    return Verdict(question, 'Unknown', 'Nothing recorded yet.', 'plain')
  answer = f'Training loss {loss[-1]:.3g}'
  detail = f'From {loss[0]:.3g}; no evaluation yet.'
  mood = 'plain' if np.isfinite(loss[-1]) else 'bad'
  return Verdict(question, answer, detail, mood)


def stability(run: runs.Run, words: Words) -> Verdict:
  """Answers whether anything exploded, and where first."""
  question, table = 'Did anything explode?', run.diagnostics
  if run.onset:
    count = sum(e['kind'] != 'transient' for e in run.events)
    kind = 'Yes' if run.onset['kind'] == 'explosion' else 'Not finite'
    answer = f'{kind}, first at step {run.onset["step"]:,}'
    said = [f'In {place(run.onset)}.'] if run.onset['layer'] else []
    if moved := run.onset['moved_first']:
      said.append(f'What moved first: {moved}.')
    said.append(f'Policy: {run.onset["action"].replace("_", " ")}.')
    if count > 1:
      said.append(f'{count:,} events in all.')
    return Verdict(question, answer, ' '.join(said), 'bad')
  if not table:
    return Verdict(question, 'Unknown', 'No diagnostics recorded.', 'plain')
  # Blanks of the others may stem from a setting.
  judged = [c for c in table if '/' not in c and c != 'step']
  bad = np.array([~np.isfinite(table[c]) for c in judged])
  if bad.any():
    row = int(bad.any(0).argmax())
    column = judged[int(bad[:, row].argmax())]
    answer = f'Not finite, first at step {table["step"][row]:,.0f}'
    detail = f'{column} is {table[column][row]}.'
    return Verdict(question, answer, detail, 'bad')
  names = {'max_logit': words.largest, 'max_abs_grad': 'largest gradient entry'}
  peaks = [f'{names[c]} {table[c].max():,.4g}' for c in names if c in table]
  detail = ', '.join([*peaks, f'over {len(table["step"]):,} steps.'])
  if run.events:
    detail += f' {len(run.events)} start-up transient(s).'
  return Verdict(question, 'No', detail, 'good')


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

  def brief(value):
    if isinstance(value, dict):
      return ' '.join(f'{k} {brief(v)}' for k, v in value.items())
    return f'{value:,.4g}' if isinstance(value, float) else str(value)

  said = {'step', 'kind', 'layer', 'moved_first', 'action'}
  return ', '.join(
    f'{key}{":" if isinstance(value, dict) else ""} {brief(value)}'
    for key, value in event.items()
    if key not in said and value is not None
  )
