"""Draws Figure 1: curves of watched runs, and exploding rates."""

import numpy as np
from matplotlib import figure

from experiments import documents
from experiments.figure1_stability import cells, tables
from experiments.runner import Row, Rows

_TITLES = {
  'max_logit': 'Largest logit',
  'max_abs_grad': 'Largest absolute gradient',
}


def curves(rows: Rows, stage: str) -> figure.Figure | None:
  """Draws the largest logit and gradient by step, a line a run, log axis.

  None without a run. Where the paper cuts its curves there is a line.
  """
  chosen = [row for row in rows.values() if row['stage'] == stage]
  if not chosen:
    return None
  labels = list(dict.fromkeys(map(_label, chosen)))
  picture, panels = documents.panels(10, 3.6, list(_TITLES.values()), 'step')
  for panel, column in zip(panels, _TITLES, strict=True):
    panel.set_yscale('log')
    panel.axhline(cells.CAP, color='#68707a', linewidth=1, linestyle=':')
    seen = set()
    for row in chosen:
      steps, values = row['curve'][column]
      drawn = [np.nan if v is None or v <= 0 else v for v in values]
      label = _label(row)
      at = labels.index(label)
      panel.plot(
        steps,
        drawn,
        color=documents.COLORS[at % len(documents.COLORS)],
        linestyle=('-', '--')[at // len(documents.COLORS) % 2],
        linewidth=1.2,
        label=None if label in seen else label,
      )
      seen.add(label)
  panels[-1].legend(frameon=False, fontsize=8)
  return picture


def _label(row: Row) -> str:
  return f'{row["size"]}, {tables.name_of(row["variant"])}'.replace('`', '')


def rates(rows: Rows, size: str) -> figure.Figure | None:
  """Draws each short run by rate and variant, filled where it exploded."""
  chosen = [r for r in rows.values() if 'exponent' in r and r['size'] == size]
  if not chosen:
    return None
  variants = [
    v for v in cells.VARIANTS if any(r['variant'] == v for r in chosen)
  ]
  height = 1.2 + 0.32 * len(variants)
  title = f'Rates at which {size} explodes within {cells.STEPS} steps'
  picture, (panel,) = documents.panels(8, height, [title], 'learning rate')
  panel.set_xscale('log')
  for row in chosen:
    exploded = row['explosion'] is not None
    place = variants.index(row['variant']) + 0.16 * (row['seed'] - 1)
    panel.plot(
      row['rate'],
      place,
      'o',
      color=documents.COLORS[1 if exploded else 0],
      fillstyle='full' if exploded else 'none',
      markersize=6,
    )
  names = [tables.name_of(v).replace('`', '') for v in variants]
  panel.set_yticks(range(len(variants)), names)
  panel.invert_yaxis()
  for exploded, label in ((True, 'exploded'), (False, 'did not')):
    panel.plot(
      [],
      [],
      'o',
      color=documents.COLORS[1 if exploded else 0],
      fillstyle='full' if exploded else 'none',
      label=label,
    )
  panel.legend(frameon=False, fontsize=8, loc='lower right')
  return picture
