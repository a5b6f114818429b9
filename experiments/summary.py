"""Says in a sentence each what the experiments found, from their rows alone.

Every number and every order below is read from results files, so that no
sentence outlives the rows it was true of.
"""

import json
import pathlib

from experiments import documents
from experiments.figure1_stability import cells as figure1_cells
from experiments.figure1_stability import tables as figure1_tables
from experiments.figure2_classification import cells as figure2_cells
from experiments.figure2_classification import tables as figure2_tables
from experiments.runner import Rows
from experiments.table1_parameters import tables as table1_tables

# Runs whose files are kept: folder, what makes it.
RECIPES = (
  ('digits/seed_0', 'digits_vit22b_ti', 'digits, 8x8'),
  ('cifar10_cpu', 'cifar10_vit22b_ti_cpu', 'CIFAR-10, 32 px'),
  ('fruit', 'fruit_vitunet_ti', 'drawn fruit, 64 px'),
  ('monet2photo_cpu', 'monet2photo_vitunet_ti_cpu', 'Monet/photo, 128 px'),
)


def answers(rows: dict[str, Rows], experiments: pathlib.Path) -> str:
  """Returns the README's table of results: a question, an answer, a page.

  Args:
    rows: the rows of each experiment by its name.
    experiments: the folder `experiments`.
  """
  titles = {
    'table1_parameters': 'Parameters',
    'figure1_stability': 'What explodes, what cures it',
    'figure2_classification': 'Does ViT-22B classify better?',
    'table2_translation': 'Which generator translates?',
  }
  lines = [
    (title, page, ANSWERS[page](rows[page])) for page, title in titles.items()
  ]
  lines.append(('Speed', 'throughput', speed(experiments / 'throughput')))
  return documents.table(
    ('question', 'answer at CPU scale'),
    [
      (f'[{question}](experiments/{page})', text)
      for question, page, text in lines
    ],
  )


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
  """Says how far each switch moves the lowest exploding rate of size S."""
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
    f'{rate:g} on. The lowest exploding rate is higher: {moved}. It stays the '
    f'same with {still}.'
  )


def classification(rows: Rows) -> str:
  """Gives the difference of the blocks in top-1, with its interval."""
  parts, decided = [], []
  for (data, _, size), blocks in figure2_tables.groups(rows).items():
    if not set(blocks) >= set(figure2_cells.BLOCKS):
      continue
    vit, vit22b = (blocks[block] for block in figure2_cells.BLOCKS)
    text = figure2_tables.difference(vit22b, vit, 'top1')
    low, _, high = text.partition('[')[2].rstrip(']').partition(', ')
    decided.append(bool(high) and float(low) * float(high) > 0)
    parts.append(f'{size} on {data} {text}')
  verdict = 'Not settled' if not any(decided) else 'In part'
  return f'{verdict}. ViT-22B less ViT in top-1: {"; ".join(parts)}.'


def translation(rows: Rows) -> str:
  """Names the generators by distance, nearest first, with the untouched."""
  parts = []
  for data in dict.fromkeys(row['data'] for row in rows.values()):
    found = [
      (row['paper']['fid'], row['generator'])
      for row in rows.values()
      if row['data'] == data and 'paper' in row
    ]
    if not found:
      continue
    identity = next(
      row['paper']['identity_fid']
      for row in rows.values()
      if row['data'] == data and 'paper' in row
    )
    ranked = sorted([*found, (identity, 'untouched images')])
    order = ', '.join(f'{name} {fid:.3g}' for fid, name in ranked)
    parts.append(f'{data.removeprefix("cycle_gan/")}: {order}')
  calibrated = all(
    row['paper']['calibrated'] for row in rows.values() if 'paper' in row
  )
  label = 'FID' if calibrated else 'Uncalibrated FID'
  return f'{label}, mean of both directions, nearest first. {"; ".join(parts)}.'


# By experiment: what answers its question from its rows.
ANSWERS = {
  'table1_parameters': parameters,
  'figure1_stability': stability,
  'figure2_classification': classification,
  'table2_translation': translation,
}


def speed(folder: pathlib.Path) -> str:
  """Gives the ranges of PyTorch's time over ours, by processor.

  Args:
    folder: of `experiments.throughput`.
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
  return f'Times PyTorch: {"; ".join(parts)}.'


def _range(values: list[float]) -> str:
  ends = (f'{min(values):.1f}', f'{max(values):.1f}')
  return ' to '.join(dict.fromkeys(ends))


def qk_norm(folder: pathlib.Path) -> str:
  """Says what norms of queries and keys cost, where that was timed.

  Args:
    folder: of `experiments.throughput`.
  """
  parts = []
  for name, measured in json.loads(
    (folder / 'results.json').read_text()
  ).items():
    ratios = {
      row['peer']: row['ratio']
      for row in measured['rows']
      if row['peer'].startswith('our ')
    }
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
  """Returns the table of runs that were measured: time and result.

  Args:
    experiments: the folder with the kept runs.
  """
  lines = []
  for folder, config, data in RECIPES:
    run = experiments / folder
    result = json.loads((run / 'eval.json').read_text())
    lines.append(
      (
        f'[{config}](experiments/{folder})',
        data,
        f'{minutes(run):.0f}',
        _result(result),
      )
    )
  return documents.table(
    ('config', 'data', '#minutes on two CPU cores', 'result on the test part'),
    lines,
  )


def minutes(run: pathlib.Path) -> float:
  """Returns the time that training steps took, from their logged speed."""
  config = json.loads((run / 'config.json').read_text())
  seconds, before = 0.0, 0
  for line in (run / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    if 'perf/images_per_second' in row:
      images = (row['step'] - before) * config['batch_size']
      seconds += images / row['perf/images_per_second']
      before = row['step']
  return seconds / 60


def _result(result: dict[str, float]) -> str:
  """Returns the headline of an eval.json."""
  if 'top1' in result:
    return f'top-1 {result["top1"]:.3f}'
  label = 'FID' if result['calibrated'] else 'uncalibrated FID'
  return (
    f'{label} {result["fid"]:.3g} (untouched images '
    f'{result["identity_fid"]:.3g})'
  )
