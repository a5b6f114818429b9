"""Draws Figure 2: every run as a point, by size and block."""

from matplotlib import figure

from experiments import documents
from experiments.figure2_classification import (
  budget,
  budget_tables,
  cells,
  tables,
)
from experiments.runner import Rows

_TITLES = {'top1': 'Top-1', 'top5': 'Top-5', 'auroc': 'AUROC'}


def accuracy(rows: Rows) -> figure.Figure:
  """Draws test metrics of each run, with the mean over seeds as a bar."""
  groups = tables.groups(rows)
  picture, panels = documents.panels(10, 3.2, list(_TITLES.values()), '')
  for panel, metric in zip(panels, _TITLES, strict=True):
    for place, blocks in enumerate(groups.values()):
      for side, block in enumerate(cells.BLOCKS):
        values = tables.known(blocks.get(block, []), metric)
        if not values:
          continue
        x = place + 0.3 * (side - 0.5)
        style = {'color': documents.COLORS[side]}
        panel.plot([x] * len(values), values, 'os'[side], **style, alpha=0.7)
        mean = sum(values) / len(values)
        panel.plot([x - 0.1, x + 0.1], [mean, mean], linewidth=2, **style)
    names = ['\n'.join((size, data)) for data, _, size in groups]
    panel.set_xticks(range(len(groups)), names)
    panel.margins(x=0.3)
  for side, block in enumerate(cells.BLOCKS):
    panels[-1].plot(
      [],
      [],
      'os'[side],
      color=documents.COLORS[side],
      label=tables.NAMES[block],
    )
  panels[-1].legend(frameon=False)
  return picture


def blocks(rows: Rows) -> figure.Figure:
  """Draws top-1 of each run of the real scale, with the mean as a bar."""
  picture, panels = documents.panels(10, 3.2, budget.DATA, '')
  for panel, data in zip(panels, budget.DATA, strict=True):
    found = budget_tables.by_block(rows, data)
    for x, runs in enumerate(found.values()):
      values = tables.known(runs, 'top1')
      style = {'color': documents.COLORS[x]}
      panel.plot([x] * len(values), values, 'o', **style, alpha=0.7)
      if values:
        mean = sum(values) / len(values)
        panel.plot([x - 0.15, x + 0.15], [mean, mean], linewidth=2, **style)
    panel.set_xticks(range(len(found)), list(found))
    panel.set_ylabel('top-1, test part')
    panel.margins(x=0.2)
  return picture
