"""Gives the report of a classifier its parts; see `task_pages`."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vit22b_jax.report import (
  charts,
  heatmaps,
  intervals,
  scores,
  summary,
)
from vit22b_jax.runtime import runs

TEMPLATE = 'classification.html'
WORDS = summary.Words('Largest logit', 'Images a second')
PLOTTED = ('Loss', 'Accuracy')
TABLE = (
  ('run', 'data', 'block', 'variant'),
  ('steps', 'top-1', 'top-5', 'AUROC', 'loss'),
)
HEADLINE = summary.Measure('top1', 'top-1, %', '.2f', 100, is_part=True)
VALIDATION = summary.Measure('val/top1', 'val top-1, %', '.2f', 100)
_PIXELS = 96  # larger images are shrunk, which keeps the page small
_PICTURES = 1_500_000  # bytes of all images on the page
_SHOWN = 48  # errors at first; the others are one click away
_CONFUSIONS = 12  # rows of the table of confused classes
_RIGHT = 24  # images that are right, for comparison
_FIVE = 6  # classes from which on top-5 tells something
# Parts of the way from guessing to no error: above, a model has learned.
_LEARNED, _GUESSED = 0.25, 0.02


def describe(run: runs.Run) -> str:
  """Returns model and data in one line."""
  model, data = run.config['model'], run.config['data']
  return (
    f'{model["block"]} {model["variant"]}, patch {model["patch_size"]}, on'
    f' {data["name"]} at {data["image_size"]} px'
  )


def facts(run: runs.Run) -> list[summary.Fact]:
  """Returns headline numbers of the final evaluation with their intervals."""
  ev, predictions = run.evaluation, run.predictions
  if not ev:
    return []
  split, percent = ev['split'].capitalize(), summary.percent
  whole = _whole(run)
  found = []
  for key, label, meaning in (
    ('top1', 'top-1', 'first choice is right'),
    ('top5', 'top-5', 'among the first five'),
  ):
    if _shows(run, key):
      note = _between(intervals.wilson(ev[key], ev['num_examples']), percent)
      note = f'{meaning}{note}'
      found.append(summary.Fact(f'{split} {label}', percent(ev[key]), note))
  for key, label, form, meaning, interval in (
    ('auroc', 'AUROC', '.4f', 'macro, one against rest', scores.auroc_interval),
    ('loss', 'loss', '.4g', 'nats', scores.loss_interval),
  ):
    if _shows(run, key):
      note = ''
      if whole:
        ends = interval(predictions['probabilities'], predictions['labels'])
        note = _between(ends, lambda value, form=form: f'{value:{form}}')
      value = f'{ev[key]:{form}}'
      found.append(summary.Fact(f'{split} {label}', value, meaning + note))
  if whole:
    error = percent(_calibration(run).error)
    note = 'confidence less accuracy'
    found.append(summary.Fact('Calibration error', error, note))
  count = f'{ev["num_examples"]:,}'
  note = summary.weights_note(ev)
  return [*found, summary.Fact(f'{split} images', count, note)]


def curves(run: runs.Run) -> dict[str, charts.Curves]:
  """Returns loss, accuracy and learning rate by step."""
  top5 = [('validation top-5', 'val/top5', '$extra')]
  return {
    'Loss': charts.Curves(
      [
        ('training', 'train/loss', '$train'),
        ('validation', 'val/loss', '$val'),
      ]
    ),
    'Accuracy': charts.Curves(
      [
        ('training', 'train/top1', '$train'),
        ('validation', 'val/top1', '$val'),
        *(top5 if _classes(run) not in range(1, _FIVE) else []),
      ],
      '.0%',
    ),
    'Learning rate': charts.LEARNING_RATE,
  }


def content(run: runs.Run) -> dict[str, Any]:
  """Returns the template's values beside the parts of every run."""
  predictions = run.predictions
  names = [str(name) for name in predictions.get('class_names', ())]
  counts = predictions.get('confusion')
  known = counts is not None and len(counts) == len(names) > 0
  drawn = known and len(names) <= heatmaps.MATRIX_CLASSES
  found = _calibration(run) if _whole(run) else None
  return {
    'layers': heatmaps.layers(run),
    'confusion': heatmaps.confusion(counts, names) if drawn else None,
    'classes': scores.by_class(counts, names) if known else [],
    'confused': scores.confused(counts, names, _CONFUSIONS) if known else [],
    'calibration': heatmaps.reliability(found) if found else None,
    'calibration_error': found.error if found else None,
    'shown': _SHOWN,
    'is_whole': _whole(run),
    'split': run.evaluation.get('split', ''),
    **_images(run, names),
  }


def rows(run: runs.Run) -> list[list[str]]:
  """Returns the cells of TABLE."""
  model = run.config['model']
  values = [
    f'{run.evaluation[key]:.3f}' if _shows(run, key) else '–'
    for key in ('top1', 'top5', 'auroc', 'loss')
  ]
  name, data, steps = run.name, run.config['data']['name'], run.last_step
  return [[name, data, model['block'], model['variant'], f'{steps:,}', *values]]


def measures(run: runs.Run) -> list[summary.Measure]:
  """Returns scores of the final evaluation."""
  top5 = summary.Measure('top5', 'top-5, %', '.2f', 100, is_part=True)
  return [
    HEADLINE,
    *([top5] if _classes(run) not in range(1, _FIVE) else []),
    summary.Measure('auroc', 'AUROC', '.4f'),
    summary.Measure('loss', 'loss, nats', '.4f', sign=-1),
  ]


def eval_protocol(run: runs.Run) -> str:
  """Returns which images the final evaluation is of."""
  ev = run.evaluation
  return (
    f'{ev["split"]} part of {run.config["data"]["name"]},'
    f' {ev["num_examples"]:,} images'
  )


def learning(run: runs.Run) -> summary.Verdict:
  """Answers whether it learned, by accuracy between guessing and no error."""
  question = 'Did it learn?'
  classes = _classes(run)
  steps, top1 = run.metric('val/top1')
  top1 = np.where(np.isfinite(top1), top1, -1.0)
  best = ''
  if len(steps):
    best = (
      f'Best validation top-1 {summary.percent(top1.max())} at step'
      f' {steps[top1.argmax()]:,}.{_overfit(run)}'
    )
  if _shows(run, 'top1'):
    score = run.evaluation['top1']
    answer = f'{summary.percent(score)} {run.evaluation["split"]} top-1'
    mood, said = _judge(score, classes)
    return summary.Verdict(question, answer, said + best, mood)
  if best:
    answer = f'{summary.percent(top1[-1])} validation top-1'
    return summary.Verdict(question, answer, best, 'plain')
  return summary.by_loss(run, question)


def _judge(score: float, classes: int) -> tuple[str, str]:
  """Returns mood and words for an accuracy."""
  if classes < 2 or not np.isfinite(score):
    return 'plain', ''
  part = (score - 1 / classes) / (1 - 1 / classes)
  chance = f'{score * classes:.1f} times chance'
  if part < _GUESSED:
    return 'bad', f'{chance}: no better than guessing. '
  if part < _LEARNED:
    return 'plain', f'{chance}, but mostly wrong. '
  return 'good', f'{chance}. '


def _overfit(run: runs.Run) -> str:
  """Returns a sentence when the validation loss has clearly turned upwards."""
  steps, loss = run.metric('val/loss')
  if not np.isfinite(loss).any() or not np.isfinite(loss[-1]):
    return ''
  best = int(np.nanargmin(np.where(np.isfinite(loss), loss, np.nan)))
  if loss[-1] < 1.1 * loss[best]:
    return ''
  return (
    f' Validation loss rose from {loss[best]:.3g} at step {steps[best]:,} to'
    f' {loss[-1]:.3g}: over-fitting.'
  )


def _classes(run: runs.Run) -> int:
  """Returns the number of classes, 0 where no file has their names."""
  return len(run.names) or len(run.predictions.get('class_names', ()))


def _shows(run: runs.Run, key: str) -> bool:
  """Returns whether the final evaluation has a number that tells something."""
  if key == 'top5' and _classes(run) in range(1, _FIVE):
    return False
  return run.evaluation.get(key) is not None


def _whole(run: runs.Run) -> bool:
  """Returns whether predictions.npz has a row for every image."""
  rows = len(run.predictions.get('labels', ()))
  return 0 < rows == run.evaluation.get('num_examples')


def _calibration(run: runs.Run) -> scores.Calibration:
  found = run.predictions
  return scores.calibration(found['probabilities'], found['labels'])


def _between(interval: intervals.Interval | None, form) -> str:
  if interval is None:
    return ''
  return f'; 95 % interval {form(interval.low)} to {form(interval.high)}'


def _images(run: runs.Run, names: list[str]) -> dict[str, Any]:
  """Returns errors, worst first, and some images that are right.

  Errors beyond the pictures that a page can hold have their places in the part.
  """
  predictions = run.predictions
  blank = {'errors': [], 'right': [], 'num_errors': 0, 'num_predictions': 0}
  if not names or not {'labels', 'probabilities'} <= predictions.keys():
    return blank
  probabilities, labels = predictions['probabilities'], predictions['labels']
  order = scores.wrong_first(probabilities, labels)
  wrong = int((probabilities.argmax(1) != labels).sum())
  pictures = _pictures(predictions, order)
  places = predictions.get('indices', np.arange(len(labels)))
  errors = [
    _card(predictions, names, i, pictures, places)
    for i in order[:wrong].tolist()
  ]
  right = [i for i in order[wrong:].tolist() if i in pictures][:_RIGHT]
  return {
    'errors': errors,
    'right': [_card(predictions, names, i, pictures, places) for i in right],
    'num_errors': wrong,
    'num_predictions': len(labels),
  }


def _card(
  predictions: dict[str, np.ndarray],
  names: list[str],
  row: int,
  pictures: dict[int, str],
  places: np.ndarray,
) -> dict[str, Any]:
  probabilities = predictions['probabilities'][row]
  true, chosen = predictions['labels'][row], probabilities.argmax()
  return {
    'place': int(places[row]),
    'source': pictures.get(row, ''),
    'true': names[true],
    'predicted': names[chosen],
    'probability': round(float(probabilities[chosen]), 3),
    'probability_true': round(float(probabilities[true]), 3),
  }


def _pictures(
  predictions: dict[str, np.ndarray], order: Int[np.ndarray, 'N']
) -> dict[int, str]:
  """Returns rows with images as data URLs, as many as the page can hold."""
  rows = predictions.get('image_rows', np.zeros(0, int)).tolist()
  kept = {row: number for number, row in enumerate(rows)}
  ordered = [row for row in order.tolist() if row in kept]
  right = ordered[::-1][:_RIGHT][::-1]  # the last ones are right, if any is
  found, size = {}, 0
  for row in [*right, *ordered]:
    if row not in found:
      source = png(predictions['images'][kept[row]])
      size += len(source)
      if size > _PICTURES and len(found) > _RIGHT:
        break
      found[row] = source
  return found


def png(image: UInt8[np.ndarray, 'H W 3']) -> str:
  """Returns an image as a data URL, at most _PIXELS a side."""
  picture, stream = Image.fromarray(image), io.BytesIO()
  picture.thumbnail((_PIXELS, _PIXELS))
  picture.save(stream, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'
