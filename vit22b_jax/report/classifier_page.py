"""Gives the report of a classifier its parts; see `task_pages`."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from vit22b_jax.report import (
  charts,
  heatmaps,
  intervals,
  samples,
  scores,
  summary,
)
from vit22b_jax.runtime import runs

WORDS = summary.Words('Largest logit', 'Images a second')
PLOTTED = ('Loss', 'Accuracy')
TABLE = (
  ('run', 'data', 'block', 'variant'),
  ('steps', 'top-1', 'top-5', 'AUROC', 'loss'),
)
HEADLINES = (
  summary.Measure('top1', 'top-1, %', '.2f', 100, is_part=True),
  summary.Measure('map', 'mAP, %', '.2f', 100),
)
VALIDATIONS = (
  summary.Measure('val/top1', 'val top-1, %', '.2f', 100),
  summary.Measure('val/map', 'val mAP, %', '.2f', 100),
)
_PIXELS = 96  # larger images are shrunk, which keeps the page small
_PICTURES = 1_500_000  # bytes of all images on the page
_SHOWN = 48  # errors at first; the others are one click away
_CONFUSIONS = 12  # rows of the table of confused classes
_RIGHT = 24  # images that are right, for comparison
_FIVE = 6  # classes from which on top-5 tells something
# Parts of the way from guessing to no error: above, a model has learned.
_LEARNED, _GUESSED = 0.25, 0.02
# Key, name, format and meaning of headline numbers.
_SCORES = (
  ('top1', 'top-1', summary.percent, 'first choice is right'),
  ('top5', 'top-5', summary.percent, 'among the first five'),
  ('map', 'mAP', summary.percent, 'average precision, mean of classes'),
  ('auroc', 'AUROC', '{:.4f}'.format, 'macro, one against rest'),
  ('loss', 'loss', '{:.4g}'.format, 'nats'),
)
# Intervals that all predictions tell.
_INTERVALS = {'auroc': scores.auroc_interval, 'loss': scores.loss_interval}
_PERCENT = {'tickformat': '.0%', 'rangemode': 'tozero'}


def describe(run: runs.Run) -> str:
  """Returns model and data in one line."""
  model, data = run.config['model'], run.config['data']
  return (
    f'{model["block"]} {model["variant"]}, patch {model["patch_size"]}, on'
    f' {data["name"]} at {data["image_size"]} px'
  )


def facts(run: runs.Run) -> list[summary.Fact]:
  """Returns headline numbers of the final evaluation with their intervals."""
  ev = run.evaluation
  if not ev:
    return []
  split, count = ev['split'].capitalize(), ev['num_examples']
  whole = _whole(run)
  found = []
  for key, label, form, meaning in _SCORES:
    if not _shows(run, key):
      continue
    ends = intervals.wilson(ev[key], count) if key in ('top1', 'top5') else None
    if whole and key in _INTERVALS:
      ends = _INTERVALS[key](*whole)
    if ends:
      low, high = map(form, ends)
      meaning += f'; 95 % interval {low} to {high}'
    found.append(summary.Fact(f'{split} {label}', form(ev[key]), meaning))
  if whole:
    error = summary.percent(scores.calibration(*whole).error)
    note = 'confidence less accuracy'
    found.append(summary.Fact('Calibration error', error, note))
  averaged = 'averaged ' if ev['weights'] == 'ema' else ''
  note = f'{averaged}weights of step {ev["step"]:,}'
  return [*found, summary.Fact(f'{split} images', f'{count:,}', note)]


def curves(run: runs.Run) -> dict[str, charts.Curves]:
  """Returns loss, accuracy and learning rate by step."""
  loss, top1 = (
    [('training', f'train/{k}', '$train'), ('validation', f'val/{k}', '$val')]
    for k in ('loss', 'top1')
  )
  top5 = [('validation top-5', 'val/top5', '$extra')]
  precision = [('validation', 'val/map', '$val')]
  return {
    'Loss': charts.Curves(loss),
    'Accuracy': charts.Curves(top1 + top5 * _has_top5(run), _PERCENT),
    'Mean average precision': charts.Curves(precision, _PERCENT),
    'Learning rate': charts.LEARNING_RATE,
  }


def content(run: runs.Run) -> dict[str, Any]:
  """Returns the template's values beside the parts of every run."""
  return {
    'layers': heatmaps.layers(run),
    'looked': _looked(run),
    'class_token': run.choices.get('model.pool') in (None, 'cls'),
    'predicted': _predicted(run) if run.predictions else None,
  }


def _predicted(run: runs.Run) -> dict[str, Any]:
  """Returns the template's values that predictions.npz gives."""
  arrays, whole = run.predictions, _whole(run)
  labels = arrays['targets' if 'targets' in arrays else 'labels']
  found = scores.Predictions(
    run.evaluation, arrays['probabilities'], labels, arrays['indices']
  )
  names, counts = arrays['class_names'].tolist(), arrays.get('confusion')
  shown = {
    **_images(arrays, found, names),
    'shown': _SHOWN,
    'classes': _by_class(found, counts, names),
    'calibration': scores.calibration(*whole) if whole else None,
    'confusion': None,
    'confused': [],
  }
  if whole:
    shown['reliability'] = heatmaps.reliability(shown['calibration'])
  if counts is not None:  # one label each
    shown['confused'] = scores.confused(counts, names, _CONFUSIONS)
    if len(names) <= heatmaps.MATRIX_CLASSES:
      shown['confusion'] = heatmaps.confusion(counts, names)
  return shown


def _by_class(
  found: scores.Predictions,
  counts: Int[np.ndarray, 'C C'] | None,
  names: list[str],
) -> dict[str, tuple]:
  """Returns images, precision and recall, and of several labels its average."""
  if counts is not None:
    lines = scores.by_class(counts.diagonal(), counts.sum(1), counts.sum(0))
  else:
    right = (found.chosen & (found.labels > 0)).sum(0)
    lines = scores.by_class(right, found.labels.sum(0), found.chosen.sum(0))
    average = found.values.get('average_precision', ())
    lines = [(*x, value) for x, value in zip(lines, average, strict=False)]
  return dict(zip(names, lines, strict=False))


def rows(run: runs.Run) -> list[list[str]]:
  """Returns the cells of TABLE."""
  model = run.config['model']
  values = [
    f'{run.evaluation[key]:.3f}' if _shows(run, key) else '–'
    for key in ('top1', 'top5', 'auroc', 'loss')
  ]
  name, data, steps = run.name, run.evaluated_data, run.last_step
  return [[name, data, model['block'], model['variant'], f'{steps:,}', *values]]


def measures(run: runs.Run) -> list[summary.Measure]:
  """Returns scores of the final evaluation."""
  top5 = summary.Measure('top5', 'top-5, %', '.2f', 100, is_part=True)
  return [
    *HEADLINES,
    *([top5] if _has_top5(run) else []),
    summary.Measure('auroc', 'AUROC', '.4f'),
    summary.Measure('loss', 'loss, nats', '.4f', sign=-1),
  ]


def eval_protocol(run: runs.Run) -> str:
  """Returns which images the final evaluation is of."""
  ev, name = run.evaluation, run.evaluated_data
  return f'{ev["split"]} part of {name}, {ev["num_examples"]:,} images'


def learning(run: runs.Run) -> summary.Verdict:
  """Answers whether it learned, by accuracy between guessing and no error."""
  question, best = 'Did it learn?', ''
  key, name = ('map', 'mAP') if _shows(run, 'map') else ('top1', 'top-1')
  steps, values = run.metric(f'val/{key}')
  values = np.where(np.isfinite(values), values, -1.0)
  if len(steps):
    best = (
      f'Best validation {name} {summary.percent(values.max())} at step'
      f' {steps[values.argmax()]:,}.{_overfit(run)}'
    )
  if _shows(run, key):
    score = run.evaluation[key]
    answer = f'{summary.percent(score)} {run.evaluation["split"]} {name}'
    mood, said = _judge(score, _chance(run, key))
    return summary.Verdict(question, answer, said + best, mood)
  if best:
    answer = f'{summary.percent(values[-1])} validation {name}'
    return summary.Verdict(question, answer, best, 'plain')
  return summary.by_loss(run, question)


def _chance(run: runs.Run, key: str) -> float:
  """Returns what guessing gives; nan where that isn't known."""
  if key == 'top1':
    return 1 / _classes(run) if _classes(run) > 1 else np.nan
  targets = run.predictions.get('targets', np.zeros(0))
  return float(targets.mean()) if targets.size else np.nan


def _judge(score: float, chance: float) -> tuple[str, str]:
  """Returns mood and words for a score between guessing and no error."""
  if not np.isfinite(score) or not 0 < chance < 1:
    return 'plain', ''
  part = (score - chance) / (1 - chance)
  said = f'{score / chance:.1f} times chance'
  if part < _GUESSED:
    return 'bad', f'{said}: no better than guessing. '
  if part < _LEARNED:
    return 'plain', f'{said}, but mostly wrong. '
  return 'good', f'{said}. '


def _overfit(run: runs.Run) -> str:
  """Returns a sentence when the validation loss has clearly turned upwards."""
  steps, loss = run.metric('val/loss')
  if not np.isfinite(loss).any() or not np.isfinite(loss[-1]):
    return ''
  best = int(np.where(np.isfinite(loss), loss, np.inf).argmin())
  if loss[-1] < 1.1 * loss[best]:
    return ''
  return (
    f' Validation loss rose from {loss[best]:.3g} at step {steps[best]:,} to'
    f' {loss[-1]:.3g}: over-fitting.'
  )


def _classes(run: runs.Run) -> int:
  """Returns the number of classes, 0 where no file has their names."""
  return len(run.names) or len(run.predictions.get('class_names', ()))


def _has_top5(run: runs.Run) -> bool:
  return _classes(run) not in range(1, _FIVE)


def _shows(run: runs.Run, key: str) -> bool:
  """Returns whether the final evaluation has a number that tells something."""
  told = key != 'top5' or _has_top5(run)
  return told and run.evaluation.get(key) is not None


def _whole(
  run: runs.Run,
) -> tuple[Float[np.ndarray, 'N C'], Int[np.ndarray, 'N']] | None:
  """Returns probabilities and labels where every image has one label."""
  labels = run.predictions.get('labels', ())
  whole = 0 < len(labels) == run.evaluation.get('num_examples')
  return (run.predictions['probabilities'], labels) if whole else None


def _images(
  arrays: dict[str, np.ndarray], found: scores.Predictions, names: list[str]
) -> dict[str, Any]:
  """Returns errors, worst first, and some images that are right.

  Errors beyond the pictures that a page can hold have their places in the part.
  """
  order, wrong = found.worst_first(), int((~found.right).sum())
  pictures = _pictures(arrays, order)

  def card(row, true, predicted):
    shown = {
      'place': int(found.indices[row]),
      'sources': [pictures[row]] if row in pictures else [],
      'true': true,
      'predicted': predicted,
    }
    if not found.multi_label:
      chances = found.probabilities[row]
      shown['probability'] = round(float(chances.max()), 3)
      shown['probability_true'] = round(float(chances[found.labels[row]]), 3)
    return shown

  def cards(rows):
    named = found.names(rows, names)
    return [card(*one) for one in zip(rows, *named.values(), strict=True)]

  errors, right = order[:wrong].tolist(), order[wrong:][::-1].tolist()
  return {
    'errors': cards(errors),
    'right': cards([row for row in right if row in pictures][:_RIGHT]),
    'num_errors': wrong,
    'num_predictions': len(order),
  }


def _pictures(
  arrays: dict[str, np.ndarray], order: Int[np.ndarray, 'N']
) -> dict[int, str]:
  """Returns rows with images as data URLs, as many as the page can hold."""
  rows = arrays['image_rows'].tolist()
  kept = {row: number for number, row in enumerate(rows)}
  ordered = [row for row in order.tolist() if row in kept]
  right = ordered[::-1][:_RIGHT]  # the last ones are right, if any is
  found, size = {}, 0
  for row in dict.fromkeys([*right, *ordered]):
    source = samples.data_url(arrays['images'][kept[row]], _PIXELS)
    size += len(source)
    if size > _PICTURES and len(found) > _RIGHT:
      break
    found[row] = source
  return found


def _looked(run: runs.Run) -> list[dict[str, Any]]:
  """Returns images and, as bright as they are looked at, their patches."""
  found, share = run.attention, run.choices.get('data.eval_crop')
  cards = []
  for row, image in enumerate(found.get('images', ())):
    side = len(image) * (share or run.choices['data.image_size'] / len(image))
    start = max(round(len(image) - side) // 2, 0)  # the model sees the center
    image = image[start : len(image) - start, start : len(image) - start]
    lit = [_lit(image, found[name][row]) for name in ('last', 'rollout')]
    cards.append(
      {
        'sources': [samples.data_url(one, _PIXELS) for one in (image, *lit)],
        'true': str(found['true'][row]),
        'predicted': str(found['predicted'][row]),
        'place': int(found['indices'][row]),
      }
    )
  return cards


def _lit(
  image: UInt8[np.ndarray, 'H W 3'], weights: Float[np.ndarray, 'h w']
) -> UInt8[np.ndarray, 'H W 3']:
  """Returns the image darkened where it isn't looked at."""
  weights = np.nan_to_num(weights.astype(np.float32), posinf=0)
  scaled = weights / max(weights.max(), 1e-9)
  mask = Image.fromarray(scaled).resize(image.shape[1::-1], Image.BILINEAR)
  light = 0.2 + 0.8 * np.clip(np.asarray(mask), 0, 1)
  return (image * light[..., None]).astype(np.uint8)
