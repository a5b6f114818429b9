"""Gives the report of an image translation its parts; see `task_pages`."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from vit22b_jax.report import charts, samples, summary
from vit22b_jax.runtime import runs

TEMPLATE = 'translation.html'
WORDS = summary.Words(
  'Largest score', 'Image pairs a second', 'of both generators'
)
PLOTTED = ('Adversarial loss', 'Cycle loss', 'FID', 'FID, uncalibrated')
TABLE = (
  ('run', 'data', 'generator', 'direction', 'measured with'),
  ('FID', 'of identity', 'untrained', 'KID', 'of identity'),
)
HEADLINE = summary.Measure('fid', 'mean FID of both ways', '.4g', sign=-1)
VALIDATION = summary.Measure('val/fid', 'val FID', '.4g', sign=-1)
DIRECTIONS = ('a2b', 'b2a')
# Prefixes of keys in eval.json, and names, of distances to compare with.
_ANCHORS = (
  ('', 'this run'),
  ('identity_', 'identity: images left as they are'),
  ('untrained_', 'untrained generator'),
)


class Score(NamedTuple):
  """Distances of one generator to the domain that it aims at.

  Attributes:
    generator: its name for readers.
    fid: of its translations.
    kid: likewise.
    deviation: standard error of `kid`.
  """

  generator: str
  fid: str
  kid: str
  deviation: str


def domain(run: runs.Run, letter: str) -> str:
  """Returns the name of domain 'a' or 'b'."""
  return run.names['ab'.index(letter)] if len(run.names) == 2 else letter


def arrow(run: runs.Run, direction: str) -> str:
  """Returns 'apple → orange' for a2b."""
  source, target = direction[0], direction[-1]
  return f'{domain(run, source)} → {domain(run, target)}'


def calibration(run: runs.Run) -> str:
  """Returns a warning word for distances unlike published ones, else ''."""
  weights = run.choices['fid.weights']
  if run.evaluation.get('calibrated', not weights):
    return ''
  if run.evaluation or weights.startswith('random:'):
    return 'uncalibrated'
  return 'own weights'  # which may be the public ones: the evaluation tells


def conditions(run: runs.Run) -> str:
  """Returns what distances are reported with, except for counts of images."""
  section = run.config['fid'] | run.evaluation
  said = [f'{key} {section.get(key)}' for key in ('tap', 'resize', 'quantize')]
  if run.choices.get('fid.num') == 'min':
    said.append('as many images of each as the smaller set has')
  return ', '.join([*said, _weights(run), *filter(None, [calibration(run)])])


def _weights(run: runs.Run) -> str:
  chosen = run.choices['fid.weights']
  if chosen.startswith('random:'):
    return f'random Inception weights, seed {chosen.removeprefix("random:")}'
  if run.evaluation.get('weights_sha256'):
    return f'weights {run.evaluation["weights_sha256"][:12]}'
  return f'weights {chosen or "of the public release"}'


def describe(run: runs.Run) -> str:
  """Returns model and data in one line."""
  data = run.config['data']
  return (
    f'{generator(run)}, discriminator {run.config["discriminator"]["name"]}, on'
    f' {data["name"]} at {data["image_size"]} px'
  )


def generator(run: runs.Run) -> str:
  """Returns the generators in a few words."""
  model = {
    key: run.choices.get(f'model.{key}')
    for key in ('generator', 'blocks', 'block', 'variant', 'patch_size')
  }
  if model['generator'] == 'resnet':
    blocks = model['blocks']
    return 'ResNet generator' + (f', {blocks} blocks' if blocks else '')
  return (
    f'ViTUnet {model["block"]} {model["variant"]}, patch {model["patch_size"]},'
    f' resampling {run.choices.get("model.resample")}'
  )


def learning(run: runs.Run) -> summary.Verdict:
  """Answers whether it learned, by the distances of untranslated images."""
  question = 'Did it learn?'
  word = calibration(run)
  noted = f' ({word})' if word else ''
  if all(run.evaluation.get(f'fid_{d}') is not None for d in DIRECTIONS):
    return _against_identity(run, question, noted)
  steps, fid = run.metric('val/fid')
  fid = np.where(np.isfinite(fid), fid, np.inf)
  if len(steps):
    return summary.Verdict(
      question,
      f'Validation FID {number(fid[-1])}{noted}',
      f'At step {steps[-1]:,}; best {number(fid.min())} at step'
      f' {steps[fid.argmin()]:,}. Means of both directions.',
      'plain',
    )
  return summary.by_loss(run, question)


def _against_identity(
  run: runs.Run, question: str, noted: str
) -> summary.Verdict:
  parts, better = [], []
  for direction in DIRECTIONS:
    fid = run.evaluation[f'fid_{direction}']
    identity = run.evaluation.get(f'identity_fid_{direction}') or np.nan
    better.append(fid < identity)
    parts.append(
      f'{arrow(run, direction)}: {summary.percent(fid / identity)} of the FID'
      ' of the untranslated images.'
    )
  both = ' / '.join(number(run.evaluation[f'fid_{d}']) for d in DIRECTIONS)
  answer = f'FID {both}{noted}'
  mood = 'good' if all(better) else 'bad'
  return summary.Verdict(question, answer, ' '.join(parts), mood)


def number(value: float | None) -> str:
  """Returns an FID or KID in four digits."""
  return '–' if value is None else f'{value:,.4g}'


def facts(run: runs.Run) -> list[summary.Fact]:
  """Returns the images of the final evaluation; its distances have tables."""
  ev = run.evaluation
  if not ev:
    return []
  counts = f'{ev["num_a"]:,} + {ev["num_b"]:,}'
  names = f'{domain(run, "a")}, {domain(run, "b")}'
  return [summary.Fact(f'{ev["split"].capitalize()} images', counts, names)]


def curves(run: runs.Run) -> dict[str, charts.Curves]:
  """Returns the losses' terms, validation distances and learning rate."""
  there, back = (arrow(run, direction) for direction in DIRECTIONS)
  a, b = domain(run, 'a'), domain(run, 'b')
  word = calibration(run)

  def distances(name: str) -> charts.Curves:
    return charts.Curves(
      [
        (there, f'val/{name}_a2b', '$train'),
        (back, f'val/{name}_b2a', '$val'),
        ('mean', f'val/{name}', '$muted'),
      ]
    )

  def pair(first: str, second: str, prefix: str, ends: str) -> charts.Curves:
    one, two = (f'train/{prefix}_{end}' for end in ends.split())
    return charts.Curves([(first, one, '$train'), (second, two, '$val')])

  total = charts.Curves([('sum', 'train/loss', '$train')])
  noted = f', {word}' if word else ''
  return {
    'Adversarial loss': pair(there, back, 'gan', 'a2b b2a'),
    'Discriminator loss': pair(a, b, 'disc', 'a b'),
    'Cycle loss': pair(a, b, 'cycle', 'a b'),
    'Identity loss': pair(a, b, 'idt', 'a b'),
    'Sum of the weighted losses': total,
    f'FID{noted}': distances('fid'),
    f'KID{noted}': distances('kid'),
    'Learning rate': charts.LEARNING_RATE,
  }


def content(run: runs.Run) -> dict[str, Any]:
  """Returns the template's values beside the parts of every run."""
  ev = run.evaluation
  names = {letter: domain(run, letter) for letter in 'ab'}
  word = calibration(run)
  shown = pictures(run)
  return {
    'scores': {
      arrow(run, d): found for d in DIRECTIONS if (found := scores(run, d))
    },
    'measured': conditions(run),
    'distances': f'Distances, {word}' if word else 'Distances',
    'evaluation': ev,
    'num_images': {names[letter]: ev[f'num_{letter}'] for letter in 'ab' if ev},
    'directions': directions(run),
    'wide': any(samples.is_wide(both[0]) for both in shown.values()),
    'film': _film(shown),
    'returns': _returns(run, shown),
  }


def directions(run: runs.Run) -> list[dict[str, Any]]:
  """Returns names of the directions and of the rows of their grids."""
  names = {letter: domain(run, letter) for letter in 'ab'}
  return [
    {
      'name': arrow(run, direction),
      'rows': [
        names[direction[0]],
        f'→ {names[direction[-1]]}',
        f'→ {names[direction[0]]}',
      ],
    }
    for direction in DIRECTIONS
  ]


def scores(run: runs.Run, direction: str) -> list[Score]:
  """Returns a direction's distances, and those of untrained generators."""
  ev = run.evaluation
  return [
    Score(
      name,
      *(
        number(ev.get(f'{prefix}{measure}_{direction}'))
        for measure in ('fid', 'kid')
      ),
      _deviation(ev.get(f'{prefix}kid_stderr_{direction}')),
    )
    for prefix, name in _ANCHORS
    if ev.get(f'{prefix}fid_{direction}') is not None
  ]


def _deviation(stderr: float | None) -> str:
  """Returns what follows a KID; sets of two images give it no error."""
  return '' if stderr is None else f'± {stderr:.1g}'


def measures(run: runs.Run) -> list[summary.Measure]:
  """Returns distances of the final evaluation, by direction."""
  return [
    summary.Measure(
      f'{key}_{direction}', f'{label}: {arrow(run, direction)}', '.4g', sign=-1
    )
    for direction in DIRECTIONS
    for key, label in (('fid', 'FID'), ('kid', 'KID'))
  ]


def eval_protocol(run: runs.Run) -> str:
  """Returns the images of the distances, and the settings behind them."""
  ev, data = run.evaluation, run.config['data']
  return (
    f'{ev["split"]} part of {data["name"]} at {data["image_size"]} px,'
    f' {ev["num_a"]:,} + {ev["num_b"]:,} images, {conditions(run)}'
  )


def rows(run: runs.Run) -> list[list[str]]:
  """Returns the cells of TABLE, a line for each direction."""
  ev, name = run.evaluation, run.config['data']['name']
  counts = f'{ev["num_a"]:,} + {ev["num_b"]:,} images, ' if ev else ''
  return [
    [
      run.name,
      name,
      generator(run),
      arrow(run, direction),
      f'{counts}{conditions(run)}',
      *(
        number(ev.get(f'{measure}_{direction}'))
        for measure in (
          *('fid', 'identity_fid', 'untrained_fid'),
          *('kid', 'identity_kid'),
        )
      ),
    ]
    for direction in DIRECTIONS
  ]


def pictures(run: runs.Run) -> dict[int, list[samples.Pixels]]:
  """Returns grids of both directions by step, without unreadable ones."""
  both = _sampled(run)
  if not both:
    return {}
  wanted = {*samples.chosen_steps(both), samples.evaluated_step(run, both)}
  return _read(run, wanted)


def evaluated(run: runs.Run) -> dict[int, list[samples.Pixels]]:
  """Returns the grids next to the evaluated weights; {} without any."""
  both = _sampled(run)
  return _read(run, {samples.evaluated_step(run, both)}) if both else {}


def _sampled(run: runs.Run) -> set[int]:
  """Returns steps with grids of both directions."""
  recorded = [run.samples.get(direction, {}) for direction in DIRECTIONS]
  return set.intersection(*map(set, recorded))


def _read(
  run: runs.Run, steps: Iterable[int]
) -> dict[int, list[samples.Pixels]]:
  found = {
    step: [samples.read(run.samples[d][step]) for d in DIRECTIONS]
    for step in sorted(steps)
  }
  return {s: g for s, g in found.items() if not any(x is None for x in g)}


def _film(found: dict[int, list[samples.Pixels]]) -> list[dict[str, Any]]:
  """Returns the grids of each step, small."""
  small = iter(samples.film([grid for both in found.values() for grid in both]))
  return [
    {'step': step, 'pictures': [next(small) for _ in both]}
    for step, both in found.items()
  ]


def _returns(
  run: runs.Run, found: dict[int, list[samples.Pixels]]
) -> dict[str, Any]:
  """Returns the grids next to the evaluated weights, and reconstructions."""
  if not found:
    return {}
  step = samples.evaluated_step(run, found)
  return {
    'step': step,
    'pictures': [samples.reconstruction(grid) for grid in found[step]],
    'off': [summary.percent(samples.deviation(grid)) for grid in found[step]],
  }
