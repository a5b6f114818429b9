"""Says in a sentence each what the experiments found, from their rows alone.

Every number and every order below is read from results files, so that no
sentence outlives the rows it was true of.
"""

import json
import pathlib

from experiments import documents
from experiments.figure1_stability import cells as figure1_cells
from experiments.figure1_stability import tables as figure1_tables
from experiments.figure2_classification import budget, budget_tables
from experiments.figure2_classification import tables as figure2_tables
from experiments.runner import Rows
from experiments.table1_parameters import tables as table1_tables
from vit22b_jax.report.summary import throughput
from vit22b_jax.runtime import runs

# Runs whose files are kept: folder, what makes it.
RECIPES = (
  ('digits/seed_0', 'digits_vit22b_ti', 'digits, 8x8'),
  ('cifar10_cpu', 'cifar10_vit22b_ti_cpu', 'CIFAR-10, 32 px'),
  ('cifar10_cpu_jpeg', 'cifar10_vit22b_ti_cpu', 'CIFAR-10 as JPEG, 32 px'),
  ('fruit', 'fruit_vitunet_ti', 'drawn fruit, 64 px'),
  ('monet2photo_cpu', 'monet2photo_vitunet_ti_cpu', 'Monet/photo, 128 px'),
)


def answers(rows: dict[str, Rows], experiments: pathlib.Path) -> str:
  """Returns the README's table of results: a question, an answer, a page.

  `rows` are those of each experiment by its name.
  """
  lines = [
    (f'[{question}](experiments/{page})', answer(rows[page]))
    for page, (question, answer) in ANSWERS.items()
  ]
  told = speed(experiments / 'throughput')
  lines.append(('[Speed](experiments/throughput)', told))
  return documents.table(('question', 'answer'), lines)


def parameters(rows: Rows) -> str:
  """Compares the counts of Table 1 with those of the released code."""
  counts = {
    (c['block'], c['size']): sum(c['terms'].values())
    for c in rows['parameters']['counts']
    if c['setting'] == 'released'
  }
  known = table1_tables.RELEASED
  equal = sum(counts[key] == number for key, number in known.items())
  return f'{equal} of the {len(known)} known counts equal the released code.'


def stability(rows: Rows) -> str:
  """Says how far each switch moves the lowest exploding rate of size S.

  `rows` are of the CPU scale, on JPEG images, and of the real one, on lossless
  ones.
  """
  _, first = figure1_cells.bounds('S', 'original', rows)
  times: dict[float, list[str]] = {}
  for variant in figure1_cells.VARIANTS:
    low, high = figure1_cells.bounds('S', variant, rows)
    if variant != 'original' and high - low == 1:
      name = figure1_tables.name_of(variant)
      times.setdefault(2.0 ** (high - first), []).append(name)
  still = ', '.join(times.pop(1.0, ()))
  moved = '; '.join(
    f'{factor:g} times with {" or ".join(times[factor])}'
    for factor in sorted(times)
  )
  rate = figure1_cells.RATE * 2.0**first
  return (
    f"Size S of the authors' first block explodes from a learning rate of "
    f'{rate:g} on. The lowest exploding rate is higher: {moved}.'
    f'{_lossless(rows)} It stays the same with {still}.'
  )


def _lossless(rows: Rows) -> str:
  """Says which switches explode at half of that rate on lossless images."""
  seeds: dict[tuple[int, int], list[str]] = {}
  for variant in figure1_cells.MAIN:
    low, _ = figure1_cells.bounds('S', variant, rows)
    repeats = [
      row['explosion']
      for row in rows.values()
      if (row['stage'], row['variant']) == ('repeat', variant)
      and row['exponent'] == low
    ]
    exploded = len(repeats) - repeats.count(None)
    if exploded:
      name = figure1_tables.name_of(variant)
      seeds.setdefault((exploded, len(repeats)), []).append(name)
  return ''.join(
    f' On lossless images {exploded} of {number} seeds '
    f'explode{"s" * (exploded == 1)} at half of that with {" or ".join(names)}.'
    for (exploded, number), names in seeds.items()
  )


def classification(rows: Rows) -> str:
  """Says what ViT-22B adds to ViT's top-1, and whether that is decided.

  `rows` are of the real scale.
  """
  parts, leads = [], []
  for data in budget.DATA:
    groups = budget_tables.by_block(rows, data)
    if {'vit', 'vit22b'} <= groups.keys():
      vit = groups['vit']
      added = figure2_tables.difference(groups['vit22b'], vit, 'top1')
      low = added.partition('[')[2].partition(',')[0]
      leads.append(bool(low) and float(low) > 0)
      reached = figure2_tables.spread(vit, 'top1').partition(' ')[0]
      parts.append(f'{data} {added}, where ViT reaches {reached}')
  verdict = 'In part' if any(leads) else 'Not shown'
  if leads == [True] * len(budget.DATA):
    verdict = 'Yes, at this budget'
  return (
    f'{verdict}. Top-1 of ViT-22B less that of ViT after {budget.EPOCHS} '
    f'epochs: {"; ".join(parts)}.'
  )


def translation(rows: Rows) -> str:
  """Names the generators by distance, nearest first, with the untouched."""
  measured = [row for row in rows.values() if 'paper' in row]
  distances: dict[str, dict[str, float]] = {}
  for row in measured:
    data = row['data'].removeprefix('cycle_gan/')
    for preset in ('paper', 'default'):
      place = f'{data} at tap {row[preset]["tap"]}'
      found = distances.setdefault(place, {})
      found.setdefault('untouched images', row[preset]['identity_fid'])
      found[row['generator']] = row[preset]['fid']
  parts = []
  for place, found in distances.items():
    ranked = sorted((fid, name) for name, fid in found.items())
    order = ', '.join(f'{name} {fid:.3g}' for fid, name in ranked)
    parts.append(f'{place}: {order}')
  calibrated = all(row['paper']['calibrated'] for row in measured)
  label = 'FID' if calibrated else 'Uncalibrated FID'
  return f'{label}, mean of both directions, nearest first. {"; ".join(parts)}.'


# What answers where it isn't the CPU scale alone.
SCALES = {
  'figure1_stability': ('cpu', 'real'),
  'figure2_classification': ('real',),
  'table2_translation': ('real',),
  'figure5_samples': ('real',),
}
# By experiment: its question in short, and what answers it from its rows.
ANSWERS = {
  'table1_parameters': ('Parameters', parameters),
  'figure1_stability': ('What explodes, what cures it', stability),
  'figure2_classification': ('Does ViT-22B classify better?', classification),
  'table2_translation': ('Which generator translates?', translation),
}


def speed(folder: pathlib.Path) -> str:
  """Gives the ranges of PyTorch's time over ours, by processor.

  `folder` is that of `experiments.throughput`.
  """
  ratios: dict[str, dict[str, list[float]]] = {}
  for file in ('results.json', 'translation.json', 'inception.json'):
    for name, measured in json.loads((folder / file).read_text()).items():
      modes = ratios.setdefault(name, {})
      for row in measured['rows']:
        if not row['peer'].startswith(('our ', 'plain ')):
          mode = 'compiled' if row['peer'].endswith('compiled') else 'eager'
          modes.setdefault(mode, []).append(row['ratio'])
  parts = [
    f'{name} ' + ', '.join(f'{_range(v)} {mode}' for mode, v in modes.items())
    for name, modes in ratios.items()
  ]
  return (
    f"PyTorch's time over ours (above 1: ours is faster): {'; '.join(parts)}."
  )


def _range(values: list[float]) -> str:
  ends = (f'{min(values):.2f}', f'{max(values):.2f}')
  return ' to '.join(dict.fromkeys(ends))


def qk_norm(folder: pathlib.Path) -> str:
  """Says what norms of queries and keys cost, where that was timed.

  `folder` is that of `experiments.throughput`.
  """
  parts = []
  results = json.loads((folder / 'results.json').read_text())
  for name, measured in results.items():
    ratios = {row['peer']: row['ratio'] for row in measured['rows']}
    for size in ('S', 'Ti'):
      if f'our vit {size} with QK-norm' in ratios:
        without = ratios[f'our vit22b {size} without QK-norm']
        vit = ratios[f'our vit {size} with QK-norm'] / ratios[f'our vit {size}']
        parts.append(
          f'On {name}, at {size}, a step of `vit22b` takes {without:.2f} times '
          f'as long without QK-norm, and one of `vit` {vit:.2f} times as long '
          'with it.'
        )
  return ' '.join(parts)


def recipes(experiments: pathlib.Path) -> str:
  """Returns the table of kept runs that were measured: time and result."""
  lines = []
  for folder, config, data in RECIPES:
    run, link = experiments / folder, f'[{config}](experiments/{folder})'
    lines.append((link, data, f'{minutes(run):.0f}', result(run)))
  return documents.table(
    ('config', 'data', '#minutes, two CPU cores', 'result on the test part'),
    lines,
  )


def minutes(run: pathlib.Path) -> float:
  """Returns the time that training steps took, from their logged speed."""
  seconds, _ = throughput(runs.read(run))
  return seconds / 60


def result(run: pathlib.Path) -> str:
  """Returns the headline of a run's eval.json."""
  found = json.loads((run / 'eval.json').read_text())
  if 'top1' in found:
    return f'top-1 {found["top1"]:.3f}'
  label = 'FID' if found['calibrated'] else 'uncalibrated FID'
  return (
    f'{label} {found["fid"]:.3g} (untouched images {found["identity_fid"]:.3g})'
  )
