"""Gives the report of an image translation its parts; see `task_pages`."""

from typing import Any

import numpy as np

from vit22b_jax.report import charts, samples, summary
from vit22b_jax.runtime import runs

WORDS = summary.Words(
  'Largest score', 'Image pairs a second', 'of both generators'
)
PLOTTED = ('Adversarial loss', 'Cycle loss', 'FID', 'FID, uncalibrated')
TABLE = (
  ('run', 'data', 'generator', 'direction', 'measured with'),
  ('FID', 'of identity', 'untrained', 'KID', 'of identity'),
)
HEADLINES = (
  summary.Measure('fid', 'mean FID of both directions', '.4g', sign=-1),
)
VALIDATIONS = (summary.Measure('val/fid', 'val FID', '.4g', sign=-1),)
DIRECTIONS = ('a2b', 'b2a')
# Prefixes of keys in eval.json, and names, of distances to compare with.
_ANCHORS = {
  '': 'this run',
  'identity_': 'identity: images left as they are',
  'untrained_': 'untrained generator',
}
_DISTANCES = {'fid': 'FID', 'kid': 'KID', 'paired_l1': 'L1 to the pairs'}


def domain(run: runs.Run, letter: str) -> str:
  """Returns the name of domain 'a' or 'b'; the letter if both have one name."""
  return run.names['ab'.index(letter)] if len(set(run.names)) == 2 else letter


def arrow(run: runs.Run, direction: str) -> str:
  """Returns 'apple → orange' for a2b."""
  return f'{domain(run, direction[0])} → {domain(run, direction[-1])}'


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
  said.append(
    runs.describe_weights(
      run.choices['fid.weights'], run.evaluation.get('weights_sha256')
    )
  )
  return ', '.join([*said, *filter(None, [calibration(run)])])


def describe(run: runs.Run) -> str:
  """Returns model and data in one line."""
  data = run.config['data']
  return (
    f'{generator(run)}, discriminator {run.config["discriminator"]["name"]}, on'
    f' {data["name"]} at {data["image_size"]} px'
  )


def generator(run: runs.Run) -> str:
  """Returns the generators in a few words."""
  keys = ('generator', 'blocks', 'block', 'variant', 'patch_size', 'resample')
  name, blocks, block, variant, patch, resample = (
    run.choices.get(f'model.{key}') for key in keys
  )
  if name == 'resnet':
    return 'ResNet generator' + (f', {blocks} blocks' if blocks else '')
  return f'ViTUnet {block} {variant}, patch {patch}, resampling {resample}'


def learning(run: runs.Run) -> summary.Verdict:
  """Answers whether it learned, by the distances of untranslated images."""
  question, word = 'Did it learn?', calibration(run)
  noted = f' ({word})' if word else ''
  ev = run.evaluation
  found = {d: ev.get(f'fid_{d}') for d in DIRECTIONS}
  if None not in found.values():
    parts = {
      d: fid / (ev.get(f'identity_fid_{d}') or np.nan)
      for d, fid in found.items()
    }
    said = ', '.join(
      f'{arrow(run, d)}: {summary.percent(part)}' for d, part in parts.items()
    )
    detail = f'{said} of the FID that untranslated images have.'
    answer = f'FID {" / ".join(map(number, found.values()))}{noted}'
    mood = 'good' if all(part < 1 for part in parts.values()) else 'bad'
    return summary.Verdict(question, answer, detail, mood)
  steps, fid = run.metric('val/fid')
  if not len(steps):
    return summary.by_loss(run, question)
  fid = np.where(np.isfinite(fid), fid, np.inf)
  answer = f'Validation FID {number(fid[-1])}{noted}'
  detail = (
    f'At step {steps[-1]:,}; best {number(fid.min())} at step'
    f' {steps[fid.argmin()]:,}. Means of both directions.'
  )
  return summary.Verdict(question, answer, detail, 'plain')


def number(value: float | None) -> str:
  """Returns an FID or KID in four digits."""
  return '–' if value is None else f'{value:,.4g}'


def facts(run: runs.Run) -> list[summary.Fact]:
  """Returns the images of the final evaluation; its distances have tables."""
  ev = run.evaluation
  if not ev:
    return []
  names = f'{domain(run, "a")}, {domain(run, "b")}'
  counts = f'{ev["num_a"]:,} + {ev["num_b"]:,}'
  return [summary.Fact(f'{ev["split"].capitalize()} images', counts, names)]


def curves(run: runs.Run) -> dict[str, charts.Curves]:
  """Returns the losses' terms, validation distances and learning rate."""
  ways = [arrow(run, direction) for direction in DIRECTIONS]
  domains = [domain(run, letter) for letter in 'ab']
  noted = f', {word}' if (word := calibration(run)) else ''

  def pair(names, *keys):
    colors = '$train', '$val'
    return charts.Curves([*zip(names, keys, colors, strict=True)])

  def distances(name):
    found = pair(ways, *(f'val/{name}_{d}' for d in DIRECTIONS))
    mean = ('mean', f'val/{name}', '$muted')
    return charts.Curves([*found.lines, mean])

  total = charts.Curves([('sum', 'train/loss', '$train')])
  return {
    'Adversarial loss': pair(ways, 'train/gan_a2b', 'train/gan_b2a'),
    'Discriminator loss': pair(domains, 'train/disc_a', 'train/disc_b'),
    'Cycle loss': pair(domains, 'train/cycle_a', 'train/cycle_b'),
    'Identity loss': pair(domains, 'train/idt_a', 'train/idt_b'),
    'L1 to the pairs': pair(domains, 'train/paired_a', 'train/paired_b'),
    'Sum of the weighted losses': total,
    f'FID{noted}': distances('fid'),
    f'KID{noted}': distances('kid'),
    'L1 to the pairs, validation': distances('paired_l1'),
    'Learning rate': charts.LEARNING_RATE,
  }


def content(run: runs.Run) -> dict[str, Any]:
  """Returns the template's values beside the parts of every run."""
  ev, word = run.evaluation, calibration(run)
  shown = pictures(run, over_time=True)
  step = samples.evaluated_step(run, shown) if shown else None
  return {
    'scores': {
      arrow(run, d): found for d in DIRECTIONS if (found := scores(run, d))
    },
    'columns': list(_DISTANCES.values())[: 3 if 'paired_l1' in ev else 2],
    'measured': conditions(run),
    'distances': f'Distances, {word}' if word else 'Distances',
    'directions': directions(run),
    'wide': any(samples.is_wide(both[0]) for both in shown.values()),
    'film': dict(zip(shown, samples.film(shown.values()), strict=True)),
    'returns_step': step,
    'returns': [
      (samples.reconstruction(grid), summary.percent(samples.deviation(grid)))
      for grid in shown.get(step, ())
    ],
  }


def directions(run: runs.Run) -> list[dict[str, Any]]:
  """Returns names of the directions and of the rows of their grids."""
  found = []
  for direction in DIRECTIONS:
    source, target = domain(run, direction[0]), domain(run, direction[-1])
    rows = [source, f'→ {target}', f'→ {source}']
    found.append({'name': arrow(run, direction), 'rows': rows})
  return found


def scores(run: runs.Run, direction: str) -> list[tuple[str, str, str, str]]:
  """Returns names, FID, KID and L1, of untrained generators too."""
  lines = []
  for prefix, name in _ANCHORS.items():
    fid, kid, l1, off = (
      run.evaluation.get(f'{prefix}{measure}_{direction}')
      for measure in (*_DISTANCES, 'kid_stderr')
    )
    if fid is not None or l1 is not None:
      # Sets of two images give a KID no error.
      error = '' if off is None else f' ± {off:.1g}'
      lines.append((name, number(fid), number(kid) + error, number(l1)))
  return lines


def measures(run: runs.Run) -> list[summary.Measure]:
  """Returns distances of the final evaluation, by direction."""
  return [
    summary.Measure(
      f'{key}_{direction}', f'{label}: {arrow(run, direction)}', '.4g', sign=-1
    )
    for direction in DIRECTIONS
    for key, label in _DISTANCES.items()
  ]


def eval_protocol(run: runs.Run) -> str:
  """Returns the images of the distances, and the settings behind them."""
  ev, size = run.evaluation, run.config['data']['image_size']
  return (
    f'{ev["split"]} part of {run.evaluated_data} at {size} px,'
    f' {ev["num_a"]:,} + {ev["num_b"]:,} images, {conditions(run)}'
  )


def rows(run: runs.Run) -> list[list[str]]:
  """Returns the cells of TABLE, a line for each direction."""
  ev, name = run.evaluation, run.evaluated_data
  counts = f'{ev["num_a"]:,} + {ev["num_b"]:,} images, ' if ev else ''
  measured = f'{counts}{conditions(run)}'
  keys = ('fid', 'identity_fid', 'untrained_fid', 'kid', 'identity_kid')
  return [
    [run.name, name, generator(run), arrow(run, direction), measured]
    + [number(ev.get(f'{key}_{direction}')) for key in keys]
    for direction in DIRECTIONS
  ]


def pictures(
  run: runs.Run, *, over_time: bool
) -> dict[int, list[samples.Pixels]]:
  """Returns grids of both directions by step, without unreadable ones.

  They are those next to the evaluated weights, or some `over_time` too.
  """
  recorded = [run.samples.get(direction, {}) for direction in DIRECTIONS]
  both = recorded[0].keys() & recorded[1].keys()
  steps = {samples.evaluated_step(run, both)} if both else set()
  steps |= set(samples.chosen_steps(both)) if over_time else set()
  found = {
    step: [samples.read(grids[step]) for grids in recorded]
    for step in sorted(steps)
  }
  return {s: g for s, g in found.items() if not any(x is None for x in g)}
