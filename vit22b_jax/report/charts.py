"""Curves as Plotly figures: plain dicts of data and layout.

Groups of runs have the colors of Okabe and Ito (2008,
https://jfly.uni-koeln.de/color/); after the last one, dashes change.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vit22b_jax.report import downsample, groups, summary, traces
from vit22b_jax.runtime import runs

Figure = dict[str, Any]

COLORS = 7  # of groups
DASHES = ('solid', 'dash', 'dot')
_ALL_POINTS = 4_000  # of all lines of a comparison's chart, about
_SEVERAL = ('$val', '$train', '$extra', '$muted')  # colors of a run's chart
_NETWORK = r'grad_norm/[a-z]\w*'  # its column of diagnostics.csv
_NORM_AXIS = {'type': 'log', 'exponentformat': 'power'}
_UNIFIED = 6  # lines that one label can list
_SHOT_UP = 20  # times as high as the line below it: cut off


class Curves(NamedTuple):
  """Lines that share a chart: name, key for `Run.metric` and color of each."""

  lines: list[tuple[str, str, str]]
  axis: Mapping[str, Any] = {'tickformat': '~g'}  # the vertical one of Plotly


# From 0, or Plotly shows one unit around a rate that never changes.
LEARNING_RATE = Curves(
  [('learning rate', 'train/learning_rate', '$train')],
  {'tickformat': '.2~e', 'rangemode': 'tozero'},
)
_NORMS = Curves(
  [
    ('clipped gradient', 'clipped_grad_norm', '$val'),  # where they differ
    ('gradient', 'grad_norm', '$train'),
    ('update', 'update_norm', '$extra'),
    ('parameters', 'param_norm', '$muted'),
  ],
  _NORM_AXIS,
)


def learning_curves(
  run: runs.Run, wanted: dict[str, Curves]
) -> dict[str, Figure]:
  """Returns charts by step, with the lines that were recorded."""
  figures = {}
  for title, curves in wanted.items():
    lines = [(name, run.metric(key), c) for name, key, c in curves.lines]
    if drawn := [t for one in lines for t in traces.with_crosses(*one)]:
      figures[title] = figure(drawn, dict(curves.axis), run.onset)
  return figures


def stability(run: runs.Run, largest: str) -> dict[str, Figure]:
  """Returns Figure 1 of the paper, and the norms around an update, by step.

  `largest` is the task's name of its largest logit.
  """
  figures = {}
  for column, title in judged(largest).items():
    name, series = title.lower(), run.metric(column)
    if len(series[0]):
      line = traces.line(name, series, '$train', 1.4, capped=True)
      drawn = [line | {'showlegend': False}]  # the chart's title says it
      drawn += traces.crosses(name, series) + traces.cap_line([series])
      drawn += traces.event_markers(run.events, series)
      figures[title] = figure(drawn, {'tickformat': ',~r'}, run.onset)
      if run.onset:
        label = _label(run.onset, series[0])
        figures[title]['layout']['annotations'] = [label]
  networks = [c for c in run.diagnostics if re.fullmatch(_NETWORK, c)]
  lines = zip(networks, itertools.cycle(_SEVERAL), strict=False)
  lines = [(c.removeprefix('grad_norm/'), c, color) for c, color in lines]
  by_network = Curves(lines, _NORM_AXIS)
  norms = {'Norms': _NORMS, 'Gradient norm of each network': by_network}
  return figures | learning_curves(run, norms)


def judged(largest: str) -> dict[str, str]:
  """Returns columns of diagnostics.csv with the titles of their charts."""
  return {'max_logit': largest, 'max_abs_grad': 'Largest absolute gradient'}


# --- Groups of runs ----------------------------------------------------------


def look(number: int) -> tuple[str, str]:
  """Returns color and dash of a group's lines."""
  return f'$group{number % COLORS}', DASHES[number // COLORS % len(DASHES)]


def by_epoch(several: Iterable[runs.Run]) -> bool:
  """Returns whether epochs align the runs: their epochs differ in steps."""
  return len({run.steps_per_epoch for run in several} - {None}) > 1


def group_curves(
  found: list[groups.Group],
  wanted: Iterable[tuple[str, str, dict[str, Any]]],
) -> dict[str, Figure]:
  """Returns metrics of all groups: a chart for each title, key and axis."""
  epochs = by_epoch(m.run for group in found for m in group.members)
  points = max(_ALL_POINTS // len(found) // 3, 40)
  figures = {}
  for title, key, axis in wanted:
    if drawn := [t for g in found for t in _group(g, key, epochs, points)]:
      figures[title] = _shared_figure(drawn, dict(axis), epochs)
      _cut(figures[title])
  return figures


def group_stability(
  found: list[groups.Group], largest: str
) -> dict[str, Figure]:
  """Returns Figure 1 of the paper: every run's line by step, onsets marked."""
  members = [(g.number, member) for g in found for member in g.members]
  points = max(_ALL_POINTS // len(members) // 3, 60)
  figures = {}
  for column, title in judged(largest).items():
    chosen = [
      (number, member, (table['step'], table[column]))
      for number, member in members
      if column in (table := member.run.diagnostics)
    ]
    if chosen:
      drawn = [trace for one in chosen for trace in _run(*one, points)]
      drawn += traces.cap_line([series for *_, series in chosen])
      figures[title] = _shared_figure(drawn, {'tickformat': ',~r'}, False)
  return figures


def _group(
  group: groups.Group, key: str, epochs: bool, points: int
) -> list[traces.Trace]:
  """Returns a group's mean with its band; alone, lines of runs that go on."""
  recorded = [(m, *m.run.metric(key)) for m in group.members]
  recorded = [(m, s, v) for m, s, v in recorded if len(s)]
  lengths = [m.run.steps_per_epoch if epochs else 1 for m, _, _ in recorded]
  length = next(filter(None, lengths), None)
  if length is None:
    return []
  lasting = _lasting(recorded)
  shared = groups.band([(s, v) for m, s, v in recorded if m.name in lasting])
  banded = len(lasting) > 1 and len(shared.steps) > 1
  color, dash = look(group.number)
  drawn = _band(group.name, shared, color, dash, points) if banded else []
  style = (1.8, dash) if len(recorded) == 1 else (1, 'dot')
  for member, steps, values in recorded:
    after = shared.steps[-1] if banded and member.name in lasting else -1
    if (steps > after).any():
      rest = steps >= after
      shown = steps[rest], values[rest]
      drawn.append(traces.line(member.name, shown, color, *style, points))
    drawn += traces.crosses(member.name, (steps, values), color)
  for trace in drawn:
    if epochs:
      trace['x'] = (np.array(trace['x']) / length).tolist()
    trace['legendgroup'] = str(group.number)
  return drawn


def _lasting(recorded: list[tuple[groups.Member, Any, Any]]) -> set[str]:
  """Returns names of runs that reach half as far as is usual in the group.

  A run that has just begun, or broke early, would cut the band of the others.
  """
  ends = {m.name: s[np.isfinite(v)].max(initial=0) for m, s, v in recorded}
  enough = np.median(list(ends.values())) / 2
  kept = {name for name, end in ends.items() if end >= enough}
  return kept if len(kept) > 1 else set(ends)


def _band(
  name: str, shared: groups.Band, color: str, dash: str, points: int
) -> list[traces.Trace]:
  keep = downsample.envelope(shared.mean, points)
  steps, mean, low, high = (values[keep] for values in shared)
  x = steps.tolist()
  area = {
    'x': x + x[::-1],
    'y': traces.compact(np.concatenate([high, low[::-1]])),
    'mode': 'lines',
    'fill': 'toself',
    'fillcolor': color,
    'line': {'width': 0},
    'opacity': 0.2,
    'hoverinfo': 'skip',
  }
  line = traces.line(name, (steps, mean), color, 1.8, dash, len(mean)) | {
    'customdata': [
      f'{a:.4g} to {b:.4g}' for a, b in zip(low, high, strict=True)
    ],
    'hovertemplate': '%{y:.4~g} <i>(%{customdata})</i>',
  }
  return [area, line]


def _run(
  number: int, member: groups.Member, series: runs.Series, points: int
) -> list[traces.Trace]:
  """Returns a run's capped line and the mark of its onset."""
  (color, dash), name = look(number), member.name
  line = traces.line(name, series, color, 1.4, dash, points, capped=True)
  drawn = [line, *traces.crosses(name, series)]
  onset = [member.run.onset] if member.run.onset else []
  for mark in traces.event_markers(onset, series):
    mark['marker'] |= {'color': color, 'size': 12}
    drawn.append(mark | {'name': f'{name}: {mark["name"]}'})
  return [trace | {'legendgroup': str(number)} for trace in drawn]


# --- Parts of figures --------------------------------------------------------


def onset_line(event: dict[str, Any] | None) -> list[dict[str, Any]]:
  """Returns a vertical line at the step of `event`, for a layout's shapes."""
  if event is None:
    return []
  line = {'color': '$bad', 'width': 1, 'dash': 'dash'}
  ends = {'x0': event['step'], 'x1': event['step'], 'y0': 0, 'y1': 1}
  return [{'type': 'line', 'line': line, 'yref': 'paper', **ends}]


def step_axis(first: int, last: int) -> dict[str, Any]:
  """Returns a horizontal axis with whole steps at its ticks."""
  every = {'dtick': 1} if last - first < 8 else {}
  return {'title': {'text': 'step'}, 'tickformat': ',d', **every}


def figure(
  drawn: list[traces.Trace],
  y_axis: dict[str, Any],
  onset: dict[str, Any] | None = None,
) -> Figure:
  """Returns a chart by step, with a mark where the first explosion began."""
  ends = [x for trace in drawn for x in (trace['x'][0], trace['x'][-1])]
  layout = {
    'xaxis': step_axis(min(ends), max(ends)),
    'yaxis': y_axis,
    'showlegend': sum(t.get('showlegend', True) for t in drawn) > 1,
    'shapes': onset_line(onset),
  }
  return {'data': drawn, 'layout': layout}


def _shared_figure(
  drawn: list[traces.Trace], y_axis: dict[str, Any], epochs: bool
) -> Figure:
  found = figure(drawn, y_axis)
  lines = [t for t in drawn if 'fill' not in t and t['mode'] != 'markers']
  found['layout'] |= {
    'showlegend': False,  # one key stands above all the charts
    'hovermode': 'x unified' if len(lines) <= _UNIFIED else 'closest',
  }
  if epochs:
    found['layout']['xaxis'] = {'title': {'text': 'epoch'}}
  return found


def _cut(figure: Figure) -> None:
  """Keeps few lines that shot up from flattening all the others."""
  heights = [[y for y in t['y'] if y is not None] for t in figure['data']]
  heights = [ys for ys in heights if ys]
  tops = sorted(map(max, heights))
  upper = itertools.pairwise(tops[(len(tops) - 1) // 2 :])
  top = next((t for t, above in upper if 0 < _SHOT_UP * t < above), None)
  if top is None:
    return
  low = min(map(min, heights))
  edge = 0.05 * (top - low)
  figure['layout']['yaxis'] |= {'range': [low - edge, top + edge]}
  note = {'text': f'cut off: up to {tops[-1]:.2g}', 'showarrow': False}
  note |= {'x': 1, 'xref': 'paper', 'xanchor': 'right'}
  note |= {'y': 1, 'yref': 'paper', 'yanchor': 'top'}
  figure['layout']['annotations'] = [note]


def _label(
  event: dict[str, Any], steps: Float[np.ndarray, 'rows']
) -> dict[str, Any]:
  """Returns a label beside an event's line, on the side with more room."""
  where = f', {summary.place(event)}' if event['layer'] else ''
  moved = event['moved_first']
  what = f'<br>{moved} moved first' if moved else ''
  late = event['step'] - steps[0] > np.ptp(steps) / 2
  side = 'right' if late else 'left'
  return {
    'text': f'step {event["step"]:,}{where}{what}',
    'x': event['step'],
    'xanchor': side,
    'xshift': 6 if side == 'left' else -6,
    'align': side,
    'y': 0.6,
    'yref': 'paper',
    'showarrow': False,
    'font': {'color': '$bad'},
    'bgcolor': '$panel',  # over a line that ends there
  }
