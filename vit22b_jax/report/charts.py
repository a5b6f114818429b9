"""A run's lines as Plotly figures: plain dicts of data and layout.

Colours are names such as '$train' that page.js replaces by the values of the
page's light or dark theme.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax.report import thin, workdir

Figure = dict[str, Any]

# Paper, Figure 1: logits and gradients are drawn up to here.
CAP = 4000.0
POINTS = 400  # buckets of a line: about two a pixel column of a wide screen
_SEVERAL = ('$train', '$val', '$extra', '$muted')  # colours of a chart
_MARKERS = 100  # events drawn; the page says how many there are


class Curves(NamedTuple):
  """Lines that share a chart.

  Attributes:
    lines: name, key of metrics.jsonl and colour of each.
    tickformat: of the vertical axis, as https://d3js.org/d3-format writes it.
  """

  lines: list[tuple[str, str, str]]
  tickformat: str = '~g'


LEARNING_RATE = Curves(
  [('learning rate', 'train/learning_rate', '$train')], '.2~e'
)


def learning_curves(
  run: workdir.Run, wanted: dict[str, Curves]
) -> dict[str, Figure]:
  """Metrics by step, of each chart the lines that were recorded."""
  figures = {}
  for title, curves in wanted.items():
    traces = [
      trace
      for name, key, colour in curves.lines
      for trace in _line(name, *run.metric(key), colour)
    ]
    if traces:
      axis = {'tickformat': curves.tickformat} | level(traces)
      figures[title] = _figure(traces, run.onset, axis)
  return figures


def stability(run: workdir.Run, largest: str) -> dict[str, Figure]:
  """Figure 1 of the paper, and the norms around an update, by step.

  Args:
    run: what a workdir holds.
    largest: what the task calls its largest logit.
  """
  table, figures = run.diagnostics, {}
  for column, title in (
    ('max_logit', largest),
    ('max_abs_grad', 'Largest absolute gradient'),
  ):
    if column in table:
      steps, values = table['step'], table[column]
      traces = capped(title.lower(), steps, values)
      traces += cap_line([(steps, values)])
      traces += event_markers(run.events, steps, values)
      figures[title] = _figure(traces, run.onset, {'tickformat': ',~r'})
      if run.onset:
        part = (run.onset['step'] - steps[0]) / max(np.ptp(steps), 1)
        figures[title]['layout']['annotations'] = [_label(run.onset, part)]
  for title, lines in _norms(table).items():
    traces = [
      trace
      for name, (column, colour) in lines.items()
      if column in table
      for trace in _line(name, table['step'], table[column], colour)
    ]
    if traces:
      axis = {'type': 'log', 'exponentformat': 'power'}
      figures[title] = _figure(traces, run.onset, axis)
  return figures


def _norms(columns: Iterable[str]) -> dict[str, dict[str, tuple[str, str]]]:
  """Charts of norms: the column and colour of each line."""
  networks = [c for c in columns if re.fullmatch(r'grad_norm/[a-z]\w*', c)]
  return {
    'Norms': {
      # First, so that it shows only where it differs from the next.
      'clipped gradient': ('clipped_grad_norm', '$val'),
      'gradient': ('grad_norm', '$train'),
      'update': ('update_norm', '$extra'),
      'parameters': ('param_norm', '$muted'),
    },
    'Gradient norm of each network': {
      column.removeprefix('grad_norm/'): (column, colour)
      for column, colour in zip(networks, _SEVERAL, strict=False)
    },
  }


def onset_line(event: dict[str, Any] | None) -> list[dict[str, Any]]:
  """A vertical line at the step of `event`, for a layout's shapes."""
  if event is None:
    return []
  line = {'color': '$bad', 'width': 1, 'dash': 'dash'}
  x = event['step']
  ends = {'x0': x, 'x1': x, 'y0': 0, 'y1': 1, 'yref': 'paper'}
  return [{'type': 'line', 'line': line, **ends}]


def step_axis(first: int, last: int) -> dict[str, Any]:
  """A horizontal axis with whole steps at its ticks, in short runs too."""
  every = {'dtick': 1} if last - first < 8 else {}
  return {'title': {'text': 'step'}, 'tickformat': ',d', **every}


def raw(value: float) -> str:
  """A value in full for reading on hover, not finite ones included."""
  return f'{value:,.5g}' if np.isfinite(value) else str(value)


def compact(values: Float[np.ndarray, '...']) -> Any:
  """Nested lists with five digits; None for what JSON can't say."""
  if values.ndim > 1:
    return [compact(row) for row in values]
  return [float(f'{v:.5g}') if np.isfinite(v) else None for v in values]


def _figure(
  traces: list[dict[str, Any]],
  onset: dict[str, Any] | None,
  y_axis: dict[str, Any],
) -> Figure:
  ends = [x for trace in traces for x in (trace['x'][0], trace['x'][-1])]
  return {
    'data': traces,
    'layout': {
      'xaxis': step_axis(min(ends), max(ends)),
      'yaxis': y_axis,
      'showlegend': sum(t.get('showlegend', True) for t in traces) > 1,
      'shapes': onset_line(onset),
    },
  }


def level(traces: list[dict[str, Any]]) -> dict[str, Any]:
  """The range of an axis whose lines all stay at one height.

  Plotly would choose one unit around it, and a rate of 2e-4 would look like 0.
  """
  heights = {y for trace in traces for y in trace['y'] if y is not None}
  if len(heights) != 1 or heights == {0.0}:
    return {}
  return {'range': sorted((0.0, 1.25 * heights.pop()))}


def _line(
  name: str,
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
  colour: str,
) -> list[dict[str, Any]]:
  """A thinned line; values that aren't finite are crosses at its upper end."""
  if not len(steps):
    return []
  keep = thin.envelope(values, POINTS)
  steps, values = steps[keep].astype(int), values[keep]
  line = {
    'name': name,
    'x': steps.tolist(),
    'y': compact(values),
    'mode': 'lines' if len(steps) > 12 else 'lines+markers',
    'line': {'color': colour, 'width': 1.6},
    'hovertemplate': '%{y:.5~g}',
  }
  return [line, *crosses(name, steps, values)]


def capped(
  name: str,
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
  colour: str = '$train',
  points: int = POINTS,
) -> list[dict[str, Any]]:
  """A thinned line drawn up to CAP; hovering reads the raw value."""
  keep = thin.envelope(values, points)
  steps, values = steps[keep].astype(int), values[keep]
  finite = np.isfinite(values)
  line = {
    'name': name,
    'showlegend': False,  # the chart's title says it
    'x': steps.tolist(),
    'y': compact(np.where(finite, np.minimum(values, CAP), np.nan)),
    'customdata': [raw(v) for v in values],
    'mode': 'lines',
    'line': {'color': colour, 'width': 1.4},
    'hovertemplate': '%{customdata}',
  }
  return [line, *crosses(name, steps, values)]


def cap_line(series: Iterable[workdir.Series]) -> list[dict[str, Any]]:
  """A line at CAP over all the steps, if anything is cut there."""
  series = [(s, v) for s, v in series if len(s)]
  if not any((v[np.isfinite(v)] > CAP).any() for _, v in series):
    return []
  ends = min(s[0] for s, _ in series), max(s[-1] for s, _ in series)
  line = {
    'name': f'cap {CAP:,.0f}',
    'x': [int(end) for end in ends],
    'y': [CAP, CAP],
    'mode': 'lines',
    'line': {'color': '$muted', 'width': 1, 'dash': 'dot'},
    'hoverinfo': 'skip',
  }
  return [line]


def crosses(
  name: str,
  steps: Float[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
  colour: str = '$bad',
) -> list[dict[str, Any]]:
  """The values that aren't finite, at the height of the largest other."""
  finite = np.isfinite(values)
  if finite.all():
    return []
  steps, broken = steps[~finite][:_MARKERS], values[~finite][:_MARKERS]
  height = min(values[finite].max(), CAP) if finite.any() else 1.0
  trace = {
    'name': f'{name}: not finite',
    'x': steps.tolist(),
    'y': [float(height)] * len(steps),
    'customdata': [raw(v) for v in broken],
    'mode': 'markers',
    'marker': {'color': colour, 'symbol': 'x', 'size': 8},
    'hovertemplate': '%{customdata}',
  }
  return [trace]


def event_markers(
  events: list[dict[str, Any]],
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
) -> list[dict[str, Any]]:
  """Events of each kind as marks on the line, with their story on hover."""
  traces = []
  for kind, colour, symbol in (
    ('explosion', '$bad', 'triangle-down'),
    ('transient', '$muted', 'circle-open'),
    ('non_finite', '$bad', 'x'),
  ):
    chosen = [event for event in events if event['kind'] == kind][:_MARKERS]
    if not chosen:
      continue
    at = [event['step'] for event in chosen]
    rows = np.clip(np.searchsorted(steps, at), 0, len(steps) - 1)
    drawn = np.nan_to_num(values[rows], nan=CAP, posinf=CAP, neginf=0.0)
    trace = {
      'name': kind.replace('_', '-'),
      'x': at,
      'y': np.minimum(drawn, CAP).tolist(),
      'customdata': [workdir.details(event) for event in chosen],
      'mode': 'markers',
      'marker': {'color': colour, 'symbol': symbol, 'size': 10},
      'hovertemplate': '%{customdata}',
    }
    traces.append(trace)
  return traces


def _label(event: dict[str, Any], part: float) -> dict[str, Any]:
  """Step, layer and what moved first beside the line at `part` of the axis."""
  where = f', {workdir.place(event)}' if event['layer'] else ''
  moved = event['moved_first']
  what = f'<br>{moved} moved first' if moved else ''
  right = part < 0.5
  return {
    'text': f'step {event["step"]:,}{where}{what}',
    'x': event['step'],
    'xanchor': 'left' if right else 'right',
    'xshift': 6 if right else -6,
    'align': 'left' if right else 'right',
    'y': 0.6,
    'yref': 'paper',
    'showarrow': False,
    'font': {'color': '$bad'},
  }
