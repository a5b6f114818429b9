"""Draws Table 2: distances of every generator, beside both anchors."""

from matplotlib import figure

from experiments import documents
from experiments.runner import Rows
from experiments.table2_translation.tables import DIRECTIONS

_ANCHORS = {
  'identity_': ('untouched images', '|'),
  'untrained_': ('untrained', 'x'),
}


def distances(rows: Rows, preset: str) -> figure.Figure:
  """Draws FID by data set and generator, a marker for each direction.

  Args:
    rows: of the runs.
    preset: 'paper' or 'default', as the rows hold them.
  """
  sets = list(dict.fromkeys(row['data'] for row in rows.values()))
  titles = [data.removeprefix('cycle_gan/') for data in sets]
  chosen = [[r for r in rows.values() if r['data'] == data] for data in sets]
  height = 1.1 + 0.42 * max(map(len, chosen))
  picture, panels = documents.panels(10, height, titles, 'FID')
  for panel, here in zip(panels, chosen, strict=True):
    for place, row in enumerate(here):
      for side, direction in enumerate(DIRECTIONS):
        y = place + 0.24 * (side - 0.5)
        color = documents.COLORS[side]
        found = row[preset]
        panel.plot(found[f'fid_{direction}'], y, 'o', color=color)
        for prefix, (_, marker) in _ANCHORS.items():
          value = found[f'{prefix}fid_{direction}']
          panel.plot(value, y, marker, color=color, alpha=0.6)
    panel.set_xlim(left=0)
    panel.set_yticks(range(len(here)), [row['generator'] for row in here])
    panel.invert_yaxis()
  for side, name in enumerate(DIRECTIONS.values()):
    panels[-1].plot([], [], 'o', color=documents.COLORS[side], label=name)
  for name, marker in _ANCHORS.values():
    panels[-1].plot([], [], marker, color='#68707a', label=name)
  panels[-1].legend(frameon=False, fontsize=8)
  return picture
