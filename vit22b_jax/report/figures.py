"""Draws a run's charts as PNG files, for papers and README files."""

import io

import numpy as np
from etils import epath
from jaxtyping import Float
from matplotlib import axes, colors, figure

from vit22b_jax.report import (
  downsample,
  heatmaps,
  samples,
  task_pages,
  traces,
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
_TRAIN, _BAD = _COLORS['$train'], _COLORS['$bad']
_STYLE = {'linewidth': 1.2}


def plots(workdir: epath.PathLike, folder: epath.PathLike) -> list[epath.Path]:
  """Writes the PNG files that a run has the records for.

  These are curves.png, stability.png, layers.png of a classifier's blocks and
  samples.png of a translation.

  Args:
    workdir: of a run.
    folder: where the pictures go; made when missing.

  Returns:
    The pictures written.

  Raises:
    errors.UserError: `workdir` is not a workdir.
  """
  run, folder = runs.read(workdir), epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  drawn = {
    'curves': _curves(run),
    'stability': _stability(run),
    'layers': _layers(run),
    'samples': _samples(run),
  }
  written = []
  for name, picture in drawn.items():
    if picture is None:
      continue
    stream = io.BytesIO()
    picture.savefig(stream, dpi=150)
    path = folder / f'{name}.png'
    path.write_bytes(stream.getvalue())
    written.append(path)
  return written


def _row(width: float, height: float, count: int) -> tuple:
  """Returns a figure with `count` quiet axes side by side."""
  picture = figure.Figure(figsize=(width, height), layout='constrained')
  panels = np.atleast_1d(picture.subplots(1, count))
  for panel in panels:
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(color='#e3e5e8', linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_xlabel('step')
  return picture, panels


def _curves(run: runs.Run) -> figure.Figure | None:
  if not run.metrics:
    return None
  pages = task_pages.for_task(run)
  curves = {
    title: lines
    for title, (lines, _) in pages.curves(run).items()
    if title in pages.PLOTTED
  }
  picture, panels = _row(4.5 * len(curves), 3.2, len(curves))
  for panel, (title, lines) in zip(panels, curves.items(), strict=True):
    panel.set_title(title, loc='left', fontsize=11)
    for name, key, color in lines:
      panel.plot(*run.metric(key), color=_COLORS[color], label=name, **_STYLE)
    panel.legend(frameon=False)
  return picture


def _stability(run: runs.Run) -> figure.Figure | None:
  """Draws Figure 1 of the paper, capped as there, with events marked."""
  if not run.diagnostics:
    return None
  picture, panels = _row(9, 3.2, 2)
  for panel, column, title in zip(
    panels,
    ('max_logit', 'max_abs_grad'),
    (task_pages.for_task(run).WORDS.largest, 'Largest absolute gradient'),
    strict=True,
  ):
    panel.set_title(title, loc='left', fontsize=11)
    _capped(panel, run.diagnostics['step'], run.diagnostics[column])
    for event in run.events[:20]:
      if event['kind'] != 'transient':
        panel.axvline(event['step'], color=_BAD, linewidth=0.8, alpha=0.6)
  return picture


def _capped(
  panel: axes.Axes,
  steps: Float[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
) -> None:
  keep = downsample.envelope(values, 400)
  drawn = np.where(np.isfinite(values), np.minimum(values, traces.CAP), np.nan)
  panel.plot(steps[keep], drawn[keep], color=_TRAIN, **_STYLE)
  bad = ~np.isfinite(values)
  panel.plot(
    steps[bad], np.full(bad.sum(), traces.CAP), 'x', color=_BAD, markersize=4
  )


def _layers(run: runs.Run) -> figure.Figure | None:
  """Draws the heat maps of the page, layer by step."""
  recorded = {
    statistic: run.layers(name)
    for name, statistic in heatmaps.STATISTICS.items()
  }
  recorded = {s: found for s, found in recorded.items() if found}
  if not recorded:
    return None
  picture, panels = _row(3.6 * len(recorded), 3.2, len(recorded))
  for panel, (statistic, (steps, values)) in zip(
    panels, recorded.items(), strict=True
  ):
    _, worst = heatmaps.extremes(values, statistic)
    panel.grid(False)
    panel.set_title(statistic.title, loc='left', fontsize=10)
    panel.set_ylabel('block')
    panel.set_facecolor(_BAD)  # seen where a value is not finite
    image = panel.imshow(
      np.minimum(worst, traces.CAP),
      aspect='auto',
      origin='lower',
      interpolation='nearest',
      cmap='Blues',
      norm=colors.LogNorm() if statistic.is_log else None,
      extent=(steps[0], steps[-1] + 1, -0.5, len(worst) - 0.5),
    )
    picture.colorbar(image, ax=panel)
  return picture


def _samples(run: runs.Run) -> figure.Figure | None:
  """Draws the sample grids next to the evaluated weights, both directions."""
  found = translation_page.pictures(run)
  if not found:
    return None
  both = found[samples.evaluated_step(run, found)]
  height, width, _ = both[0].shape
  stacked = samples.is_wide(both[0])
  shape = (2, 1) if stacked else (1, 2)
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
