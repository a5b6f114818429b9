"""Draws the parts of Plotly figures: lines, crosses, marks.

Colors are names such as '$train' that page.js replaces by the values of the
page's light or dark theme.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax.report import downsample, summary
from vit22b_jax.runtime import runs

Trace = dict[str, Any]

# Paper, Figure 1: logits and gradients are drawn up to here.
CAP = 4000.0
POINTS = 400  # buckets of a line: about two a pixel column of a wide screen
_MARKERS = 100  # events drawn; the page says how many there are
# Color and symbol of the marks of each kind of event.
_MARKS = {
  'explosion': ('$bad', 'triangle-down'),
  'transient': ('$muted', 'circle-open'),
  'non_finite': ('$bad', 'x'),
}


def line(
  name: str,
  series: runs.Series,
  color: str,
  width: float = 1.6,
  dash: str = 'solid',
  points: int = POINTS,
  *,
  capped: bool = False,
) -> Trace:
  """Returns a line with at most about 3 * `points` points, every spike kept.

  A capped one is drawn up to CAP; hovering reads the raw value.
  """
  steps, values = series
  keep = downsample.envelope(values, points)
  steps, values = steps[keep].astype(int), values[keep]
  trace = {
    'name': name,
    'x': steps.tolist(),
    'y': compact(values),
    'mode': 'lines' if len(steps) > 12 or capped else 'lines+markers',
    'line': {'color': color, 'dash': dash, 'width': width},
    'hovertemplate': '%{y:.5~g}',
  }
  if capped:
    drawn = np.where(np.isfinite(values), np.minimum(values, CAP), np.nan)
    trace |= {'y': compact(drawn), 'hovertemplate': '%{customdata}'}
    trace['customdata'] = [raw(value) for value in values]
  return trace


def with_crosses(name: str, series: runs.Series, color: str) -> list[Trace]:
  """Returns a line and its values that aren't finite; [] without steps."""
  if not len(series[0]):
    return []
  return [line(name, series, color), *crosses(name, series)]


def cap_line(several: list[runs.Series]) -> list[Trace]:
  """Returns a line at CAP over all the steps, if anything is cut there."""
  if not any((v[np.isfinite(v)] > CAP).any() for _, v in several):
    return []
  ends = min(s[0] for s, _ in several), max(s[-1] for s, _ in several)
  trace = {'name': f'cap {CAP:,.0f}', 'x': [*map(int, ends)], 'y': [CAP, CAP]}
  return [trace | dotted()]


def dotted() -> Trace:
  """Returns the look of a line that nothing was measured for."""
  look = {'color': '$muted', 'width': 1, 'dash': 'dot'}
  return {'mode': 'lines', 'line': look, 'hoverinfo': 'skip'}


def crosses(name: str, series: runs.Series, color: str = '$bad') -> list[Trace]:
  """Returns the values that aren't finite, as high as the largest other."""
  steps, values = series
  finite = np.isfinite(values)
  if finite.all():
    return []
  height = min(values[finite].max(), CAP) if finite.any() else 1.0
  said = [raw(value) for value in values[~finite]]
  steps = steps[~finite]
  heights = np.full(len(steps), height)
  marker = {'color': color, 'symbol': 'x', 'size': 8}
  return [_marks(f'{name}: not finite', steps, heights, said, marker)]


def event_markers(
  events: list[dict[str, Any]], series: runs.Series
) -> list[Trace]:
  """Returns events of each kind as marks on the line, details on hover."""
  (steps, values), traces = series, []
  for kind, (color, symbol) in _MARKS.items():
    chosen = [event for event in events if event['kind'] == kind]
    at = np.array([event['step'] for event in chosen], int)
    rows = np.clip(np.searchsorted(steps, at), 0, len(steps) - 1)
    heights = np.nan_to_num(values[rows], nan=CAP, posinf=CAP, neginf=0.0)
    said = [summary.details(event) for event in chosen]
    marker = {'color': color, 'symbol': symbol, 'size': 10}
    if chosen:
      name = kind.replace('_', '-')
      traces.append(_marks(name, at, np.minimum(heights, CAP), said, marker))
  return traces


def raw(value: float) -> str:
  """Returns a value in full for reading on hover, not finite ones included."""
  return f'{value:,.5g}' if np.isfinite(value) else str(value)


def compact(values: Float[np.ndarray, '...']) -> Any:
  """Returns nested lists with five digits; None for what JSON can't say."""
  if values.ndim > 1:
    return [compact(row) for row in values]
  return [float(f'{v:.5g}') if np.isfinite(v) else None for v in values]


def _marks(
  name: str,
  steps: Int[np.ndarray, 'points'],
  heights: Float[np.ndarray, 'points'],
  said: list[str],
  marker: dict[str, Any],
) -> Trace:
  return {
    'name': name,
    'x': steps[:_MARKERS].astype(int).tolist(),
    'y': heights[:_MARKERS].tolist(),
    'customdata': said[:_MARKERS],
    'mode': 'markers',
    'marker': marker,
    'hovertemplate': '%{customdata}',
  }
