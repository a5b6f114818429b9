"""A run in a few sentences and numbers: what to know in ten seconds."""

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


def verdicts(run: workdir.Run) -> list[Verdict]:
  """Did it learn, did anything explode and where first, is it done?"""
  return [_learning(run), _stability(run), _progress(run)]


def facts(run: workdir.Run) -> list[Fact]:
  """Headline numbers that the workdir's files can give."""
  found = []
  ev = run.evaluation
  if ev:
    found += [
      Fact('Test top-1', percent(ev['top1']), 'first choice is right'),
      Fact('Test top-5', percent(ev['top5']), 'among the first five'),
      Fact('Test AUROC', f'{ev["auroc"]:.4f}', 'macro, one against the rest'),
      Fact('Test loss', f'{ev["loss"]:.4g}', 'nats'),
      Fact('Test images', f'{ev["num_examples"]:,}', f'split {ev["split"]}'),
    ]
  found.append(Fact('Steps', f'{run.last_step:,}', _batch_note(run)))
  seconds, rate = _throughput(run)
  if rate:
    found += [
      Fact('Training time', duration(seconds), 'steps alone'),
      Fact('Images a second', f'{rate:,.4g}', 'median'),
    ]
  if 'parameters' in run.versions:
    found.append(Fact('Parameters', si(run.versions['parameters'])))
  return found


def summary(run: workdir.Run) -> str:
  """What was trained on what, in one line."""
  model, data = run.config['model'], run.config['data']
  return (
    f'{model["block"]} {model["variant"]}, patch {model["patch_size"]}, on'
    f' {data["name"]} at {data["image_size"]} px'
  )


def percent(part: float) -> str:
  return f'{100 * part:.1f} %' if np.isfinite(part) else str(part)


def number(value: float | None) -> str:
  return '–' if value is None else f'{value:,.4g}'


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
  return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


def _batch_note(run: workdir.Run) -> str:
  return f'batch {run.config["batch_size"]:,}'


def _throughput(run: workdir.Run) -> tuple[float, float]:
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


def _progress(run: workdir.Run) -> Verdict:
  question, planned = 'Is it done?', planned_steps(run)
  done = f'{run.last_step:,} steps'
  if run.evaluation:
    return Verdict(question, 'Finished', f'{done}, tested once.', 'good')
  halted = [e for e in run.events if e['action'] == 'halt']
  if halted:
    return Verdict(
      question, 'Halted', halted[-1]['message'] or f'After {done}.', 'bad'
    )
  of = f' of {planned:,}' if planned else ''
  return Verdict(
    question,
    'Not finished',
    f'Step {run.last_step:,}{of}: still running, or stopped. The same command'
    ' resumes it.',
    'plain',
  )


def _learning(run: workdir.Run) -> Verdict:
  question = 'Did it learn?'
  classes = len(run.predictions.get('class_names', ()))
  steps, top1 = run.metric('val/top1')
  top1 = np.where(np.isfinite(top1), top1, -1.0)
  best = ''
  if len(steps):
    best = (
      f'Best validation top-1 {percent(top1.max())} at step'
      f' {steps[top1.argmax()]:,}.{_overfit(run)}'
    )
  if run.evaluation:
    score = run.evaluation['top1']
    chance = f'{score * classes:.1f} times chance. ' if classes else ''
    mood = 'bad' if classes and score * classes < 1.5 else 'good'
    answer = f'{percent(score)} test top-1'
    return Verdict(question, answer, chance + best, mood)
  if best:
    answer = f'{percent(top1[-1])} validation top-1'
    return Verdict(question, answer, best, 'plain')
  _, loss = run.metric('train/loss')
  if not len(loss):
    return Verdict(question, 'Unknown', 'Nothing recorded yet.', 'plain')
  return Verdict(
    question,
    f'Training loss {loss[-1]:.3g}',
    f'From {loss[0]:.3g}; no evaluation yet.',
    'plain' if np.isfinite(loss[-1]) else 'bad',
  )


def _overfit(run: workdir.Run) -> str:
  """Says when the validation loss has clearly turned upwards."""
  steps, loss = run.metric('val/loss')
  if not np.isfinite(loss).any() or not np.isfinite(loss[-1]):
    return ''
  best = int(np.nanargmin(np.where(np.isfinite(loss), loss, np.nan)))
  if loss[-1] < 1.1 * loss[best]:
    return ''
  return (
    f' Validation loss rose from {loss[best]:.3g} at step {steps[best]:,} to'
    f' {loss[-1]:.3g}: it over-fits.'
  )


def _stability(run: workdir.Run) -> Verdict:
  question = 'Did anything explode?'
  serious = [e for e in run.events if e['kind'] != 'transient']
  if serious:
    first = serious[0]
    more = f' {len(serious):,} events in all.' if len(serious) > 1 else ''
    kind = 'Yes' if first['kind'] == 'explosion' else 'Not finite'
    return Verdict(
      question,
      f'{kind}, first at step {first["step"]:,}',
      f'{_sentence(first)}{more}',
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
  return Verdict(question, 'No', _peaks(run), 'good')


def _judged(table: dict[str, Any]) -> list[str]:
  """Columns whose blanks can't stem from a setting."""
  return [c for c in table if '/' not in c and c != 'step']


def _sentence(event: dict[str, Any]) -> str:
  where = f'In {event["layer"]}. ' if event['layer'] else ''
  moved = event['moved_first']
  what = f'What moved first: {moved}. ' if moved else ''
  return f'{where}{what}Policy: {event["action"].replace("_", " ")}.'


def _peaks(run: workdir.Run) -> str:
  table = run.diagnostics
  transients = sum(e['kind'] == 'transient' for e in run.events)
  note = f' {transients} start-up transients.' if transients else ''
  return (
    f'Largest logit {table["max_logit"].max():,.4g}, largest gradient entry'
    f' {table["max_abs_grad"].max():,.4g}, over {len(table["step"]):,}'
    f' steps.{note}'
  )
