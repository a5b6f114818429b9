"""What the report tells of a classifier; see `kinds`."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from vit22b_jax.report import charts, maps, story, workdir

TEMPLATE = 'classification.html'
WORDS = story.Words('Largest logit', 'Images a second')
PLOTTED = ('Loss', 'Accuracy')
TABLE = (
  ('run', 'data', 'block', 'variant'),
  ('steps', 'top-1', 'top-5', 'AUROC', 'loss'),
)
HEADLINE = story.Measure('top1', 'top-1, %', '.2f', 100, is_part=True)
VALIDATION = story.Measure('val/top1', 'val top-1, %', '.2f', 100)
_SAMPLE_PIXELS = 96  # larger images are shrunk, which keeps the page small
_CONFUSIONS = 8  # rows of the table of confused classes


def summary(run: workdir.Run) -> str:
  """What was trained on what, in one line."""
  model, data = run.config['model'], run.config['data']
  return (
    f'{model["block"]} {model["variant"]}, patch {model["patch_size"]}, on'
    f' {data["name"]} at {data["image_size"]} px'
  )


def facts(run: workdir.Run) -> list[story.Fact]:
  """Headline numbers of the final evaluation."""
  ev = run.evaluation
  if not ev:
    return []
  split, percent = ev['split'].capitalize(), story.percent
  note = story.weights_note(ev)
  return [
    story.Fact(f'{split} top-1', percent(ev['top1']), 'first choice is right'),
    story.Fact(f'{split} top-5', percent(ev['top5']), 'among the first five'),
    story.Fact(
      f'{split} AUROC', f'{ev["auroc"]:.4f}', 'macro, one against rest'
    ),
    story.Fact(f'{split} loss', f'{ev["loss"]:.4g}', 'nats'),
    story.Fact(f'{split} images', f'{ev["num_examples"]:,}', note),
  ]


def curves(run: workdir.Run) -> dict[str, charts.Curves]:
  """Loss, accuracy and learning rate by step."""
  del run
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
        ('validation top-5', 'val/top5', '$extra'),
      ],
      '.0%',
    ),
    'Learning rate': charts.LEARNING_RATE,
  }


def content(run: workdir.Run) -> dict[str, Any]:
  """What the template shows beside the parts of every run."""
  predictions = run.predictions
  names = [str(name) for name in predictions.get('class_names', ())]
  counts = predictions.get('confusion')
  drawn = counts is not None and len(names) <= maps.MATRIX_CLASSES
  return {
    'layers': maps.layers(run),
    'samples': _samples(predictions, names),
    'confusion': maps.confusion(counts, names) if drawn else None,
    'classes': len(names),
    'confused': [] if counts is None else confused(counts, names),
  }


def rows(run: workdir.Run) -> list[list[str]]:
  """The cells of TABLE."""
  model = run.config['model']
  scores = [
    f'{run.evaluation[key]:.3f}' if key in run.evaluation else '–'
    for key in ('top1', 'top5', 'auroc', 'loss')
  ]
  return [
    [
      run.name,
      run.config['data']['name'],
      model['block'],
      model['variant'],
      f'{run.last_step:,}',
      *scores,
    ]
  ]


def measures(run: workdir.Run) -> list[story.Measure]:
  """Scores of the final evaluation."""
  del run
  return [
    HEADLINE,
    story.Measure('top5', 'top-5, %', '.2f', 100, is_part=True),
    story.Measure('auroc', 'AUROC', '.4f'),
    story.Measure('loss', 'loss, nats', '.4f', sign=-1),
  ]


def yardstick(run: workdir.Run) -> str:
  """Of which images the final evaluation is."""
  ev = run.evaluation
  return (
    f'{ev["split"]} part of {run.config["data"]["name"]},'
    f' {ev["num_examples"]:,} images'
  )


def learning(run: workdir.Run) -> story.Verdict:
  """Did it learn?"""
  question = 'Did it learn?'
  classes = len(run.predictions.get('class_names', ()))
  steps, top1 = run.metric('val/top1')
  top1 = np.where(np.isfinite(top1), top1, -1.0)
  best = ''
  if len(steps):
    best = (
      f'Best validation top-1 {story.percent(top1.max())} at step'
      f' {steps[top1.argmax()]:,}.{_overfit(run)}'
    )
  if run.evaluation:
    score = run.evaluation['top1']
    chance = f'{score * classes:.1f} times chance. ' if classes else ''
    mood = 'bad' if classes and score * classes < 1.5 else 'good'
    answer = f'{story.percent(score)} {run.evaluation["split"]} top-1'
    return story.Verdict(question, answer, chance + best, mood)
  if best:
    answer = f'{story.percent(top1[-1])} validation top-1'
    return story.Verdict(question, answer, best, 'plain')
  return story.by_loss(run, question)


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
    f' {loss[-1]:.3g}: over-fitting.'
  )


def _samples(
  predictions: dict[str, np.ndarray], names: list[str]
) -> list[dict[str, Any]]:
  """Sample predictions, wrong ones first, each group by confidence."""
  if 'images' not in predictions:
    return []
  probabilities = predictions['probabilities']
  chosen, labels = probabilities.argmax(1), predictions['labels']
  order = np.lexsort((-probabilities.max(1), chosen == labels))
  return [
    {
      'source': png(predictions['images'][i]),
      'true': names[labels[i]],
      'predicted': names[chosen[i]],
      'probability': float(probabilities[i, chosen[i]]),
      'probability_true': float(probabilities[i, labels[i]]),
      'right': bool(chosen[i] == labels[i]),
    }
    for i in order
  ]


def png(image: Int[np.ndarray, 'H W 3']) -> str:
  """A uint8 image as a data URL, at most _SAMPLE_PIXELS a side."""
  picture, stream = Image.fromarray(image), io.BytesIO()
  picture.thumbnail((_SAMPLE_PIXELS, _SAMPLE_PIXELS))
  picture.save(stream, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'


def confused(
  counts: Int[np.ndarray, 'C C'], names: list[str]
) -> list[dict[str, Any]]:
  """The pairs of classes confused most often, for classes of any number."""
  wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
  order = np.argsort(wrong, axis=None, kind='stable')[::-1][:_CONFUSIONS]
  pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
  totals: Float[np.ndarray, 'C'] = counts.sum(1)
  return [
    {
      'true': names[i],
      'predicted': names[j],
      'count': int(counts[i, j]),
      'part': story.percent(counts[i, j] / totals[i]),
    }
    for i, j in pairs
    if wrong[i, j]
  ]
