"""Draws a run's charts as PNG files, for papers and README files."""

import io

import numpy as np
from etils import epath
from matplotlib import figure

from vit22b_jax import errors
from vit22b_jax.report import (
  charts,
  heatmaps,
  samples,
  task_pages,
  translation_page,
)
from vit22b_jax.runtime import runs

_COLORS = {
  '$train': '#3b6fb6',
  '$val': '#d07a1f',
  '$extra': '#5a9a6f',
  '$muted': '#68707a',
  '$bad': '#c0352b',
}
_DASHES = {'solid': '-', 'dash': '--', 'dot': ':'}


def plots(workdir: epath.PathLike, folder: epath.PathLike) -> list[epath.Path]:
  """Writes PNG files of what a run has recorded, and returns their paths.

  These are curves.png, stability.png, layers.png of a classifier's blocks and
  samples.png of a translation. The folder is made when missing.

  Raises:
    errors.UserError: `workdir` is not a workdir, or `folder` no folder.
  """
  run, folder = runs.read(workdir), epath.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except FileExistsError:
    raise errors.UserError(f'{folder} is a file: give a folder.') from None
  pages = task_pages.for_task(run)
  curves = charts.learning_curves(run, pages.curves(run))
  stability = charts.stability(run, pages.WORDS.largest)
  drawn = {
    'curves': _row({t: c for t, c in curves.items() if t in pages.PLOTTED}),
    'stability': _row({t: c for t, c in stability.items() if 'Largest' in t}),
    'layers': _row(heatmaps.layers(run)),
    'samples': _samples(run),
  }
  written = []
  for name, picture in drawn.items():
    if picture is not None:
      stream = io.BytesIO()
      picture.savefig(stream, dpi=150)
      written.append(folder / f'{name}.png')
      written[-1].write_bytes(stream.getvalue())
  return written


def _row(found: dict[str, charts.Figure]) -> figure.Figure | None:
  """Draws charts of the page side by side."""
  if not found:
    return None
  size = (4.5 * len(found), 3.2)
  picture = figure.Figure(figsize=size, layout='constrained')
  panels = picture.subplots(1, len(found), squeeze=False)[0]
  for panel, (title, chart) in zip(panels, found.items(), strict=True):
    panel.set_title(title, loc='left', fontsize=11)
    panel.set_xlabel('step')
    panel.spines[['top', 'right']].set_visible(False)
    for trace in chart['data']:
      _draw(panel, trace)
    for line in chart['layout']['shapes']:
      panel.axvline(line['x0'], color=_COLORS['$bad'], linewidth=0.8)
    if chart['layout'].get('showlegend'):
      panel.legend(frameon=False)
  return picture


def _draw(panel, trace: dict) -> None:
  if trace.get('type') == 'heatmap':
    panel.set_facecolor(_COLORS['$bad'])  # seen where a value is not finite
    panel.set_ylabel('block')
    values = np.array(trace['z'], float)
    image = panel.pcolormesh(trace['x'], trace['y'], values, cmap='Blues')
    bar = trace['colorbar']
    ticks = {'ticks': bar['tickvals']} if 'tickvals' in bar else {}
    legend = panel.figure.colorbar(image, ax=panel, **ticks)
    if ticks:
      legend.set_ticklabels(bar['ticktext'])
    return
  panel.grid(color='#e3e5e8', linewidth=0.6)
  look = {'marker': 'x', 'linestyle': ''}
  if trace['mode'] != 'markers':
    look = {'linestyle': _DASHES[trace['line'].get('dash', 'solid')]}
  color = _COLORS[trace.get('marker', trace.get('line'))['color']]
  heights = np.array(trace['y'], float)
  look |= {'color': color, 'label': trace['name'], 'linewidth': 1.2}
  panel.plot(trace['x'], heights, **look)


def _samples(run: runs.Run) -> figure.Figure | None:
  """Draws the sample grids next to the evaluated weights, both directions."""
  found = translation_page.pictures(run, over_time=False)
  if not found:
    return None
  (both,) = found.values()
  height, width, _ = both[0].shape
  shape = (2, 1) if samples.is_wide(both[0]) else (1, 2)
  inches = 9 / shape[1] * height / width + 0.3  # of one with its title
  picture = figure.Figure(figsize=(9, shape[0] * inches), layout='constrained')
  panels = picture.subplots(*shape)
  for panel, grid, side in zip(
    panels, both, translation_page.directions(run), strict=True
  ):
    panel.imshow(grid, interpolation='nearest')
    panel.set_title(side['name'], loc='left', fontsize=11)
    middles = (np.arange(samples.ROWS) + 0.5) * height / samples.ROWS
    panel.set_yticks(middles, side['rows'], rotation=90, va='center')
    panel.set_xticks([])
    panel.tick_params(length=0, labelsize=9)
    panel.spines[:].set_visible(False)
  return picture
