"""What the report tells of an image translation; see `kinds`."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from vit22b_jax.report import charts, grids, story, workdir

TEMPLATE = 'translation.html'
WORDS = story.Words(
  'Largest score', 'Image pairs a second', 'of both generators'
)
PLOTTED = ('Adversarial loss', 'Cycle loss', 'FID', 'FID, uncalibrated')
TABLE = (
  ('run', 'data', 'generator', 'direction', 'measured with'),
  ('FID', 'of identity', 'untrained', 'KID', 'of identity'),
)
HEADLINE = story.Measure('fid', 'mean FID of both ways', '.4g', sign=-1)
VALIDATION = story.Measure('val/fid', 'val FID', '.4g', sign=-1)
DIRECTIONS = ('a2b', 'b2a')
# What stands beside a run's distances: prefix of the keys, and name.
_ANCHORS = (
  ('', 'this run'),
  ('identity_', 'identity: images left as they are'),
  ('untrained_', 'untrained generator'),
)


class Score(NamedTuple):
  """Distances of one generator to the domain that it aims at."""

  generator: str
  fid: str
  kid: str


def domain(run: workdir.Run, letter: str) -> str:
  """What domain 'a' or 'b' is called."""
  return run.names['ab'.index(letter)] if len(run.names) == 2 else letter


def arrow(run: workdir.Run, direction: str) -> str:
  """'apple → orange' for a2b."""
  source, target = direction[0], direction[-1]
  return f'{domain(run, source)} → {domain(run, target)}'


def calibration(run: workdir.Run) -> str:
  """'' for distances that compare with published ones; else a warning word."""
  weights = run.config['fid']['weights']
  if run.evaluation.get('calibrated', not weights):
    return ''
  if run.evaluation or weights.startswith('random:'):
    return 'uncalibrated'
  return 'own weights'  # which may be the public ones: the evaluation tells


def conditions(run: workdir.Run) -> str:
  """What a distance has to be reported with, except for counts of images."""
  ev, section = run.evaluation, run.config['fid']
  tap, resize, quantize = (
    ev.get(key, section[key]) for key in ('tap', 'resize', 'quantize')
  )
  if 'weights_sha256' in ev:
    weights = f'weights {ev["weights_sha256"][:12]}'
  else:
    weights = f'weights {section["weights"] or "of the public release"}'
  said = [f'tap {tap}', f'resize {resize}', f'quantize {quantize}']
  if section['num'] == 'min':
    said.append('as many images of each as the smaller set has')
  return ', '.join([*said, weights, *filter(None, [calibration(run)])])


def summary(run: workdir.Run) -> str:
  """What was trained on what, in one line."""
  data = run.config['data']
  return (
    f'{generator(run)}, discriminator {run.config["discriminator"]["name"]}, on'
    f' {data["name"]} at {data["image_size"]} px'
  )


def generator(run: workdir.Run) -> str:
  """The generators in a few words."""
  model = run.config['model']
  if model['generator'] == 'resnet':
    blocks = model['blocks']
    return 'ResNet generator' + (f', {blocks} blocks' if blocks else '')
  return (
    f'ViTUnet {model["block"]} {model["variant"]}, patch {model["patch_size"]},'
    f' resampling {model["resample"]}'
  )


def learning(run: workdir.Run) -> story.Verdict:
  """Did it learn, by what leaving the images as they are would score?"""
  question = 'Did it learn?'
  word = calibration(run)
  noted = f' ({word})' if word else ''
  if run.evaluation:
    return _against_identity(run, question, noted)
  steps, fid = run.metric('val/fid')
  fid = np.where(np.isfinite(fid), fid, np.inf)
  if len(steps):
    return story.Verdict(
      question,
      f'Validation FID {number(fid[-1])}{noted}',
      f'At step {steps[-1]:,}; best {number(fid.min())} at step'
      f' {steps[fid.argmin()]:,}. Means of both directions.',
      'plain',
    )
  return story.by_loss(run, question)


def _against_identity(
  run: workdir.Run, question: str, noted: str
) -> story.Verdict:
  ev, parts, better = run.evaluation, [], []
  for direction in DIRECTIONS:
    fid, identity = ev[f'fid_{direction}'], ev[f'identity_fid_{direction}']
    better.append(fid < identity)
    parts.append(
      f'{arrow(run, direction)}: {story.percent(fid / identity)} of the FID of'
      ' the untranslated images.'
    )
  both = ' / '.join(number(ev[f'fid_{d}']) for d in DIRECTIONS)
  answer = f'FID {both}{noted}'
  mood = 'good' if all(better) else 'bad'
  return story.Verdict(question, answer, ' '.join(parts), mood)


def number(value: float) -> str:
  """Four digits, as FIDs and KIDs are told."""
  return f'{value:,.4g}'


def facts(run: workdir.Run) -> list[story.Fact]:
  """What the final evaluation is of; its distances have tables."""
  ev = run.evaluation
  if not ev:
    return []
  counts = f'{ev["num_a"]:,} + {ev["num_b"]:,}'
  names = f'{domain(run, "a")}, {domain(run, "b")}'
  return [story.Fact(f'{ev["split"].capitalize()} images', counts, names)]


def curves(run: workdir.Run) -> dict[str, charts.Curves]:
  """The losses' terms, distances on the validation part, learning rate."""
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

  return {
    'Adversarial loss': charts.Curves(
      [
        (there, 'train/gan_a2b', '$train'),
        (back, 'train/gan_b2a', '$val'),
      ]
    ),
    'Discriminator loss': charts.Curves(
      [(a, 'train/disc_a', '$train'), (b, 'train/disc_b', '$val')]
    ),
    'Cycle loss': charts.Curves(
      [(a, 'train/cycle_a', '$train'), (b, 'train/cycle_b', '$val')]
    ),
    'Identity loss': charts.Curves(
      [(a, 'train/idt_a', '$train'), (b, 'train/idt_b', '$val')]
    ),
    'Sum of the weighted losses': charts.Curves(
      [('sum', 'train/loss', '$train')]
    ),
    f'FID, {word}' if word else 'FID': distances('fid'),
    f'KID, {word}' if word else 'KID': distances('kid'),
    'Learning rate': charts.LEARNING_RATE,
  }


def content(run: workdir.Run) -> dict[str, Any]:
  """What the template shows beside the parts of every run."""
  ev = run.evaluation
  names = {letter: domain(run, letter) for letter in 'ab'}
  word = calibration(run)
  found = pictures(run)
  return {
    'scores': {arrow(run, d): scores(run, d) for d in DIRECTIONS if ev},
    'measured': conditions(run),
    'distances': f'Distances, {word}' if word else 'Distances',
    'evaluation': ev,
    'num_images': {names[letter]: ev[f'num_{letter}'] for letter in 'ab' if ev},
    'directions': directions(run),
    'wide': any(grids.is_wide(both[0]) for both in found.values()),
    'film': _film(found),
    'returns': _returns(run, found),
  }


def directions(run: workdir.Run) -> list[dict[str, Any]]:
  """Names of the directions and of the three rows of their grids."""
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


def scores(run: workdir.Run, direction: str) -> list[Score]:
  """A direction's distances beside those of generators that learned nothing."""
  ev = run.evaluation
  return [
    Score(
      name,
      number(ev[f'{prefix}fid_{direction}']),
      number(ev[f'{prefix}kid_{direction}'])
      + _error(ev[f'{prefix}kid_stderr_{direction}']),
    )
    for prefix, name in _ANCHORS
    if f'{prefix}fid_{direction}' in ev
  ]


def _error(stderr: float | None) -> str:
  """Returns what follows a KID; sets of two images give it no error."""
  return '' if stderr is None else f' ± {stderr:.1g}'


def measures(run: workdir.Run) -> list[story.Measure]:
  """Distances of the final evaluation, a direction after the other."""
  return [
    story.Measure(
      f'{key}_{direction}', f'{label}: {arrow(run, direction)}', '.4g', sign=-1
    )
    for direction in DIRECTIONS
    for key, label in (('fid', 'FID'), ('kid', 'KID'))
  ]


def yardstick(run: workdir.Run) -> str:
  """To which images the distances are, and what they are reported with."""
  ev, data = run.evaluation, run.config['data']
  return (
    f'{ev["split"]} part of {data["name"]} at {data["image_size"]} px,'
    f' {ev["num_a"]:,} + {ev["num_b"]:,} images, {conditions(run)}'
  )


def rows(run: workdir.Run) -> list[list[str]]:
  """The cells of TABLE, a line for each direction."""
  ev, lines = run.evaluation, []
  for direction in DIRECTIONS:
    values = [
      number(ev[key]) if key in ev else '–'
      for key in (
        f'fid_{direction}',
        f'identity_fid_{direction}',
        f'untrained_fid_{direction}',
        f'kid_{direction}',
        f'identity_kid_{direction}',
      )
    ]
    counts = f'{ev["num_a"]:,} + {ev["num_b"]:,} images, ' if ev else ''
    lines.append(
      [
        run.name,
        run.config['data']['name'],
        generator(run),
        arrow(run, direction),
        f'{counts}{conditions(run)}',
        *values,
      ]
    )
  return lines


def pictures(run: workdir.Run) -> dict[int, list[grids.Pixels]]:
  """The grids to show by step, a direction each; unreadable ones left out."""
  both = _sampled(run)
  if not both:
    return {}
  wanted = {*grids.chosen_steps(both), grids.evaluated_step(run, both)}
  return _read(run, wanted)


def evaluated(run: workdir.Run) -> dict[int, list[grids.Pixels]]:
  """The grids next to the evaluated weights, by their step; {} without any."""
  both = _sampled(run)
  return _read(run, {grids.evaluated_step(run, both)}) if both else {}


def _sampled(run: workdir.Run) -> set[int]:
  """Steps with grids of both directions."""
  recorded = [run.samples.get(direction, {}) for direction in DIRECTIONS]
  return set.intersection(*map(set, recorded))


def _read(
  run: workdir.Run, steps: Iterable[int]
) -> dict[int, list[grids.Pixels]]:
  found = {
    step: [grids.read(run.samples[d][step]) for d in DIRECTIONS]
    for step in sorted(steps)
  }
  return {s: g for s, g in found.items() if not any(x is None for x in g)}


def _film(found: dict[int, list[grids.Pixels]]) -> list[dict[str, Any]]:
  """The grids of each step, small."""
  small = iter(grids.film([grid for both in found.values() for grid in both]))
  return [
    {'step': step, 'pictures': [next(small) for _ in both]}
    for step, both in found.items()
  ]


def _returns(
  run: workdir.Run, found: dict[int, list[grids.Pixels]]
) -> dict[str, Any]:
  """The grids next to the evaluated weights, with what the cycle loses."""
  if not found:
    return {}
  step = grids.evaluated_step(run, found)
  return {
    'step': step,
    'pictures': [grids.reconstruction(grid) for grid in found[step]],
    'off': [story.percent(grids.deviation(grid)) for grid in found[step]],
  }
