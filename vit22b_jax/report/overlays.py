"""Lines of many runs in shared charts: a colour for each group.

Colours are those of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/), in
shades for either theme, which page.js fills in; after them, dashes change.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax.report import charts, groups, kinds, thin, workdir

COLOURS = 7
DASHES = ('solid', 'dash', 'dot')
_POINTS = 4_000  # of all lines of a chart, about
_UNIFIED = 6  # lines that one label can list
_SHOT_UP = 20  # times as high as the line below it: cut off


class Together(NamedTuple):
  """Runs of a group at the steps that all of them recorded.

  Attributes:
    steps: where each run has a finite value.
    mean: over the runs.
    low: the smallest of them.
    high: the largest of them.
  """

  steps: Int[np.ndarray, 'points']
  mean: Float[np.ndarray, 'points']
  low: Float[np.ndarray, 'points']
  high: Float[np.ndarray, 'points']


def look(number: int) -> tuple[str, str]:
  """Colour and dash of a group's lines."""
  dash = DASHES[number // COLOURS % len(DASHES)]
  return f'$group{number % COLOURS}', dash


def by_epoch(runs: list[workdir.Run]) -> bool:
  """Whether epochs align the runs: their epochs differ in steps."""
  lengths = [_steps_per_epoch(run) for run in runs]
  return len({length for length in lengths if length}) > 1


def curves(found: list[groups.Group]) -> dict[str, charts.Figure]:
  """Metrics of all groups, a chart for each line of a run's own charts."""
  runs = [member.run for group in found for member in group.members]
  epochs, figures = by_epoch(runs), {}
  for title, key, tickformat in _wanted(runs):
    traces = [
      trace
      for number, group in enumerate(found)
      for trace in _group(number, group, key, epochs, len(found))
    ]
    if traces:
      axis = {'tickformat': tickformat} | charts.level(traces)
      figures[title] = _figure(traces, axis, epochs)
      _cut(figures[title])
  return figures


def stability(
  found: list[groups.Group], largest: str
) -> dict[str, charts.Figure]:
  """Figure 1 of the paper: every run's line by step, its onset marked."""
  figures = {}
  count = sum(len(group.members) for group in found)
  for column, title in (
    ('max_logit', largest),
    ('max_abs_grad', 'Largest absolute gradient'),
  ):
    traces, drawn = [], []
    for number, group in enumerate(found):
      for member in group.members:
        table = member.run.diagnostics
        if column in table:
          drawn.append((table['step'], table[column]))
          traces += _run(number, member, *drawn[-1], count)
    if traces:
      traces += charts.cap_line(drawn)
      figures[title] = _figure(traces, {'tickformat': ',~r'}, False)
  return figures


def together(series: list[workdir.Series]) -> Together:
  """Mean and range at the steps at which every run has a finite value."""
  finite = [_finite(*s) for s in series]
  steps = sorted(set.intersection(*map(set, finite)))
  values = np.array([[run[s] for s in steps] for run in finite])
  return Together(
    np.array(steps, np.int64), values.mean(0), values.min(0), values.max(0)
  )


def _wanted(runs: list[workdir.Run]) -> list[tuple[str, str, str]]:
  """Title, key of metrics.jsonl and format of each chart."""
  titles: dict[str, list[str]] = {}
  formats = {}
  for run in runs:
    for title, several in kinds.of(run).curves(run).items():
      for name, key, _ in several.lines:
        full = f'{title}: {name}' if len(several.lines) > 1 else title
        titles.setdefault(key, []).append(full)
        formats[key] = several.tickformat
  return [
    (kinds.agreed(found, key), key, formats[key])
    for key, found in titles.items()
  ]


def _group(
  number: int, group: groups.Group, key: str, epochs: bool, count: int
) -> list[dict[str, Any]]:
  """A group's mean with its band; alone, the lines of runs that go on."""
  recorded = [(m, *m.run.metric(key)) for m in group.members]
  recorded = [(m, s, v) for m, s, v in recorded if len(s)]
  lengths = [_steps_per_epoch(m.run) for m, _, _ in recorded if epochs] or [1]
  length = next(filter(None, lengths), None)
  if not recorded or length is None:
    return []
  banded = _lasting(recorded)
  shared = together([(s, v) for m, s, v in recorded if m.name in banded])
  several = len(banded) > 1 and len(shared.steps) > 1
  points = max(_POINTS // count // 3, 40)
  traces = _band(number, group, shared, length, points) if several else []
  for member, steps, values in recorded:
    after = shared.steps[-1] if several and member.name in banded else -1
    rest = steps >= after
    if (steps > after).any():
      line = _line(number, member.name, steps[rest], values[rest], points)
      if len(recorded) > 1:
        line['line'] |= {'dash': 'dot', 'width': 1}
      traces.append(line | {'x': (np.array(line['x']) / length).tolist()})
    traces += charts.crosses(
      member.name, steps / length, values, look(number)[0]
    )
  return [trace | {'legendgroup': str(number)} for trace in traces]


def _lasting(recorded: list[tuple[groups.Member, Any, Any]]) -> set[str]:
  """Names of those whose values reach half as far as is usual in the group.

  A run that has just begun, or broke early, would cut the band of the others.
  """
  ends = {m.name: s[np.isfinite(v)].max(initial=0) for m, s, v in recorded}
  enough = np.median(list(ends.values())) / 2
  kept = {name for name, end in ends.items() if end >= enough}
  return kept if len(kept) > 1 else set(ends)


def _band(
  number: int,
  group: groups.Group,
  shared: Together,
  length: float,
  points: int,
) -> list[dict[str, Any]]:
  keep = thin.envelope(shared.mean, points)
  steps, mean, low, high = (values[keep] for values in shared)
  x = (steps / length).tolist()
  area = {
    'x': x + x[::-1],
    'y': charts.compact(np.concatenate([high, low[::-1]])),
    'mode': 'lines',
    'fill': 'toself',
    'fillcolor': look(number)[0],
    'line': {'width': 0},
    'opacity': 0.2,
    'hoverinfo': 'skip',
  }
  line = _line(number, group.name, steps, mean, points) | {
    'x': x,
    'customdata': [
      f'{a:.4g} to {b:.4g}' for a, b in zip(low, high, strict=True)
    ],
    'hovertemplate': '%{y:.4~g} <i>(%{customdata})</i>',
  }
  return [area, line]


def _line(
  number: int,
  name: str,
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
  points: int,
) -> dict[str, Any]:
  keep = thin.envelope(values, points)
  colour, dash = look(number)
  return {
    'name': name,
    'x': steps[keep].tolist(),
    'y': charts.compact(values[keep]),
    'mode': 'lines' if len(keep) > 12 else 'lines+markers',
    'line': {'color': colour, 'dash': dash, 'width': 1.8},
    'hovertemplate': '%{y:.5~g}',
  }


def _run(
  number: int,
  member: groups.Member,
  steps: Float[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
  count: int,
) -> list[dict[str, Any]]:
  """A run's capped line and the mark of its onset."""
  colour, dash = look(number)
  points = max(_POINTS // count // 3, 60)
  traces = charts.capped(member.name, steps, values, colour, points)
  traces[0]['line'] |= {'dash': dash}
  if member.run.onset:
    for mark in charts.event_markers([member.run.onset], steps, values):
      mark['name'] = f'{member.name}: {mark["name"]}'
      mark['marker'] |= {'color': colour, 'size': 12}
      traces.append(mark)
  return [trace | {'legendgroup': str(number)} for trace in traces]


def _cut(figure: charts.Figure) -> None:
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


def _figure(
  traces: list[dict[str, Any]], y_axis: dict[str, Any], epochs: bool
) -> charts.Figure:
  ends = [x for trace in traces for x in (trace['x'][0], trace['x'][-1])]
  axis = {'title': {'text': 'epoch'}}
  lines = [t for t in traces if 'fill' not in t and t['mode'] != 'markers']
  return {
    'data': traces,
    'layout': {
      'xaxis': axis if epochs else charts.step_axis(min(ends), max(ends)),
      'yaxis': y_axis,
      'showlegend': False,  # one key stands above all the charts
      'hovermode': 'x unified' if len(lines) <= _UNIFIED else 'closest',
    },
  }


def _finite(
  steps: Int[np.ndarray, 'rows'], values: Float[np.ndarray, 'rows']
) -> dict[int, float]:
  pairs = zip(steps.tolist(), values.tolist(), strict=True)
  return {step: value for step, value in pairs if np.isfinite(value)}


def _steps_per_epoch(run: workdir.Run) -> int | None:
  lengths = [r['step'] / r['epoch'] for r in run.metrics if r.get('epoch')]
  return round(lengths[-1]) if lengths else None
