"""Writes Figure 2's rows in Markdown: means, and differences of blocks."""

import numpy as np

from experiments import documents
from experiments.figure2_classification import cells, paper
from experiments.runner import Row, Rows
from vit22b_jax.report import intervals

METRICS = ('top1', 'top5', 'auroc')
NAMES = {'vit': 'ViT', 'vit22b': 'ViT-22B'}

Group = tuple[str, str, str]  # set, setting, size


def groups(rows: Rows) -> dict[Group, dict[str, list[Row]]]:
  """Returns the runs by set, setting and size, then by block."""
  found: dict[Group, dict[str, list[Row]]] = {}
  for row in rows.values():
    group = found.setdefault((row['data'], row['setting'], row['size']), {})
    group.setdefault(row['block'], []).append(row)
  return found


def sections(rows: Rows) -> list[str]:
  """Returns the page's parts."""
  return [
    'Test part; mean over seeds, smallest to largest in brackets; beside them '
    "the paper's figures, of 224 px, patch 16 and 200 epochs.",
    means(rows),
    'ViT-22B less ViT, with the 95 % interval of a Welch t-test over seeds:',
    differences(rows),
  ]


def means(rows: Rows) -> str:
  """Returns a line a set, setting, size and block."""
  lines = []
  for (data, setting, size), blocks in groups(rows).items():
    for block in cells.BLOCKS:
      chosen = blocks.get(block, [])
      if not chosen:
        continue
      published = paper.FIGURE2[data, block].get(size, ('-',) * 3)
      lines.append(
        [
          data,
          setting,
          size,
          NAMES[block],
          f'{chosen[0]["parameters"] / 1e6:.1f}M',
          _budget(chosen[0]),
          _seeds(chosen),
          *(spread(chosen, metric) for metric in (*METRICS, 'loss')),
          *published[:2],
        ]
      )
  return documents.table(
    (
      'set',
      'setting',
      'size',
      'block',
      '#parameters',
      '#images seen',
      '#seeds',
      '#top-1',
      '#top-5',
      '#AUROC',
      '#loss',
      "#paper's top-1",
      '#top-5',
    ),
    lines,
  )


def differences(rows: Rows) -> str:
  """Returns a line a set, setting and size that has both blocks."""
  lines = []
  for (data, setting, size), blocks in groups(rows).items():
    if set(blocks) == set(cells.BLOCKS):
      vit, vit22b = (blocks[block] for block in cells.BLOCKS)
      published = [
        paper.FIGURE2[data, b].get(size, (np.nan,))[0] for b in cells.BLOCKS
      ]
      lines.append(
        [
          data,
          setting,
          size,
          *(difference(vit22b, vit, metric) for metric in METRICS),
          f'{published[1] - published[0]:+.3f}',
        ]
      )
  columns = ('set', 'setting', 'size', '#top-1', '#top-5', '#AUROC')
  return documents.table((*columns, "#paper's top-1"), lines)


def difference(a: list[Row], b: list[Row], metric: str) -> str:
  """Returns the mean of `a` less that of `b`, with its interval."""
  first, second = (known(rows, metric) for rows in (a, b))
  if not first or not second:
    return '-'
  value, interval = intervals.welch(second, first)
  if interval is None:
    return f'{value:+.3f} (too few seeds)'
  low, high = interval
  return f'{value:+.3f} [{low:+.3f}, {high:+.3f}]'


def known(rows: list[Row], metric: str) -> list[float]:
  """Returns the values of the runs that came to an evaluation."""
  return [row[metric] for row in rows if row[metric] is not None]


def _seeds(rows: list[Row]) -> str:
  """Returns the number of runs, of how many that were begun."""
  done = len(known(rows, 'top1'))
  return str(done) if done == len(rows) else f'{done} of {len(rows)}'


def _budget(row: Row) -> str:
  if 'steps' not in row:
    return '200 epochs'
  return f'{row["steps"] * row["batch_size"]:,}'


def spread(rows: list[Row], metric: str) -> str:
  """Formats a mean over seeds, with the smallest and the largest."""
  values = known(rows, metric)
  if not values:
    return '-'
  text = f'{np.mean(values):.3f}'
  if len(values) < 2:
    return text
  return f'{text} [{min(values):.3f}, {max(values):.3f}]'
