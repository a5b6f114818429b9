"""A run's charts as Plotly figures: plain dicts of data and layout.

Colours are names such as '$train' that page.js replaces by the values of the
page's light or dark theme.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax.report import thin, workdir

Figure = dict[str, Any]

# Paper, Figure 1: logits and gradients are drawn up to here.
CAP = 4000.0
# statistic -> title, what a bucket of steps keeps, whether colour is log10
LAYER_STATISTICS = {
  'attn_logit_max': ('Largest attention logit', 'max', True),
  'attn_entropy': ('Attention entropy (nats), smallest', 'min', False),
  'residual_rms': ('Residual stream RMS', 'max', True),
  'grad_norm': ('Gradient norm', 'max', True),
}
_POINTS = 400  # buckets of a line: about two a pixel column of a wide screen
_COLUMNS = 150  # of a heat map
_MARKERS = 100  # events drawn; the table on the page says how many there are
_NAMED_CLASSES = 30  # more labels than this don't fit on the axes
MATRIX_CLASSES = 200  # a larger confusion matrix is listed, not drawn


def learning_curves(run: workdir.Run) -> dict[str, Figure]:
  """Loss, accuracy and learning rate by step; those that were recorded."""
  lines = {
    'Loss': [
      ('training', 'train/loss', '$train'),
      ('validation', 'val/loss', '$val'),
    ],
    'Accuracy': [
      ('training top-1', 'train/top1', '$train'),
      ('validation top-1', 'val/top1', '$val'),
      ('validation top-5', 'val/top5', '$extra'),
    ],
    'Learning rate': [('learning rate', 'train/learning_rate', '$train')],
  }
  figures = {}
  for title, wanted in lines.items():
    traces = [
      trace
      for name, key, colour in wanted
      for trace in _line(name, *run.metric(key), colour)
    ]
    if traces:
      figures[title] = _figure(traces)
  for title, tickformat in (('Accuracy', '.0%'), ('Learning rate', '.2~e')):
    if title in figures:
      figures[title]['layout']['yaxis'] |= {'tickformat': tickformat}
  return figures


def stability(run: workdir.Run) -> dict[str, Figure]:
  """Figure 1 of the paper, and the norms around an update, by step."""
  table, figures = run.diagnostics, {}
  for column, title in (
    ('max_logit', 'Largest logit'),
    ('max_abs_grad', 'Largest absolute gradient'),
  ):
    if column in table:
      steps, values = table['step'], table[column]
      figures[title] = _figure(
        _capped(title.lower(), steps, values)
        + _event_markers(run.events, steps, values)
      )
  norms = {
    'gradient': ('grad_norm', '$train'),
    'gradient, clipped': ('clipped_grad_norm', '$val'),
    'update': ('update_norm', '$extra'),
    'parameters': ('param_norm', '$muted'),
  }
  traces = [
    trace
    for name, (column, colour) in norms.items()
    if column in table
    for trace in _line(name, table['step'], table[column], colour)
  ]
  if traces:
    figures['Norms'] = _figure(traces, y_type='log')
  return figures


def layers(run: workdir.Run) -> dict[str, Figure]:
  """A heat map, layer by step, of each per-layer statistic recorded."""
  figures = {}
  for statistic, (title, reduce, is_log) in LAYER_STATISTICS.items():
    values = run.layers(statistic)
    if values is None:
      continue
    steps = run.diagnostics['step']
    # A column switched on by a resume is blank before it. NaNs of a broken step
    # come with a NaN loss and stay.
    recorded = np.isfinite(values).any(0) | ~np.isfinite(
      run.diagnostics['loss']
    )
    steps, values = steps[recorded], values[:, recorded]
    if len(steps):
      figures[title] = _heat_map(steps, values, reduce, is_log)
  return figures


def confusion(counts: Int[np.ndarray, 'C C'], names: list[str]) -> Figure:
  """Confusion matrix: rows are true classes, colours parts of a row."""
  total = np.maximum(counts.sum(1, keepdims=True), 1)
  few = len(names) <= _NAMED_CLASSES
  trace = {
    'type': 'heatmap',
    'z': _compact(counts / total),
    'x': names,
    'y': names,
    'customdata': counts.tolist(),
    'hovertemplate': 'true %{y}<br>predicted %{x}'
    '<br>%{customdata} images, %{z:.1%} of the class<extra></extra>',
    'colorscale': '$scale',
    'zmin': 0,
    'zmax': 1,
    'showscale': False,
    'xgap': 1 if few else 0,
    'ygap': 1 if few else 0,
  }
  if len(names) <= 12:
    trace |= {'text': counts.tolist(), 'texttemplate': '%{text}'}
  axis = {'type': 'category', 'showgrid': False, 'showticklabels': few}
  return {
    'data': [trace],
    'layout': {
      'xaxis': axis | {'title': {'text': 'predicted'}, 'tickangle': -45},
      'yaxis': axis | {'title': {'text': 'true'}, 'autorange': 'reversed'},
    },
  }


def _figure(traces: list[dict[str, Any]], y_type: str = 'linear') -> Figure:
  shown = [t for t in traces if t.get('showlegend', True)]
  return {
    'data': traces,
    'layout': {
      'xaxis': {'title': {'text': 'step'}, 'tickformat': ',d'},
      'yaxis': {'type': y_type, 'exponentformat': 'power'},
      'showlegend': len(shown) > 1,
    },
  }


def _line(
  name: str,
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
  colour: str,
) -> list[dict[str, Any]]:
  """A thinned line; non-finite values are crosses at its upper end."""
  if not len(steps):
    return []
  keep = thin.envelope(values, _POINTS)
  steps, values = steps[keep], values[keep]
  bad = ~np.isfinite(values)
  line = {
    'name': name,
    'x': steps.astype(int).tolist(),
    'y': _compact(values),
    'mode': 'lines' if len(steps) > 12 else 'lines+markers',
    'line': {'color': colour, 'width': 1.6},
    'hovertemplate': '%{y:.5~g}',
  }
  if not bad.any():
    return [line]
  top = values[~bad].max() if not bad.all() else 1.0
  return [line, _crosses(name, steps[bad], values[bad], top)]


def _capped(
  name: str,
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'rows'],
) -> list[dict[str, Any]]:
  """A thinned line drawn up to CAP; hovering reads the raw value."""
  keep = thin.envelope(values, _POINTS)
  steps, values = steps[keep].astype(int), values[keep]
  bad = ~np.isfinite(values)
  traces = [
    {
      'name': name,
      'x': steps.tolist(),
      'y': _compact(np.where(bad, np.nan, np.minimum(values, CAP))),
      'customdata': [_raw(v) for v in values],
      'mode': 'lines',
      'line': {'color': '$train', 'width': 1.4},
      'hovertemplate': '%{customdata}',
    }
  ]
  if (values[~bad] > CAP).any():
    traces.append(
      {
        'name': f'cap {CAP:,.0f}',
        'x': [int(steps[0]), int(steps[-1])],
        'y': [CAP, CAP],
        'mode': 'lines',
        'line': {'color': '$muted', 'width': 1, 'dash': 'dot'},
        'hoverinfo': 'skip',
      }
    )
  if bad.any():
    top = min(values[~bad].max(), CAP) if not bad.all() else CAP
    traces.append(_crosses(name, steps[bad], values[bad], top))
  return traces


def _crosses(
  name: str,
  steps: Int[np.ndarray, 'bad'],
  values: Float[np.ndarray, 'bad'],
  height: float,
) -> dict[str, Any]:
  return {
    'name': f'{name}: not finite',
    'x': steps[:_MARKERS].astype(int).tolist(),
    'y': [float(height)] * len(steps[:_MARKERS]),
    'customdata': [_raw(v) for v in values[:_MARKERS]],
    'mode': 'markers',
    'marker': {'color': '$bad', 'symbol': 'x', 'size': 8},
    'hovertemplate': '%{customdata}',
  }


def _event_markers(
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
    traces.append(
      {
        'name': kind.replace('_', '-'),
        'x': at,
        'y': np.minimum(drawn, CAP).tolist(),
        'customdata': [story(event) for event in chosen],
        'mode': 'markers',
        'marker': {'color': colour, 'symbol': symbol, 'size': 10},
        'hovertemplate': '%{customdata}<extra></extra>',
      }
    )
  return traces


def story(event: dict[str, Any]) -> str:
  """An event in a few words: what moved first, where."""
  where = event['layer'] or 'no single layer'
  moved = event['moved_first'] or 'nothing before it'
  return f'{event["kind"].replace("_", "-")}: {moved} moved first, {where}'


def _heat_map(
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'depth rows'],
  reduce: str,
  is_log: bool,
) -> Figure:
  starts, extremes = thin.buckets(values, _COLUMNS, reduce)
  drawn = np.log10(np.maximum(extremes, 1e-12)) if is_log else extremes
  depth = len(values)
  width = -(-len(steps) // len(starts))
  each = f'{width:,} steps from' if width > 1 else 'step'
  bar: dict[str, Any] = {'thickness': 10, 'outlinewidth': 0}
  if is_log:
    bar |= _log_ticks(drawn)
  trace = {
    'type': 'heatmap',
    'x': steps[starts].astype(int).tolist(),
    'y': list(range(depth)),
    'z': _compact(drawn),
    'text': [[_raw(v) for v in row] for row in extremes],
    'hovertemplate': f'block %{{y}}, %{{text}}<br>{each} %{{x}}<extra></extra>',
    'hoverongaps': True,
    'colorscale': '$scale',
    'colorbar': bar,
  }
  return {
    'data': [trace],
    'layout': {
      'xaxis': {'title': {'text': 'step'}, 'tickformat': ',d'},
      'yaxis': {'title': {'text': 'block'}, 'dtick': max(1, depth // 6)},
      'plot_bgcolor': '$bad',  # shows where a value is not finite
    },
  }


def _log_ticks(exponents: Float[np.ndarray, 'depth buckets']) -> dict[str, Any]:
  """Colour-bar ticks at round raw values of a log10 scale."""
  finite = exponents[np.isfinite(exponents)]
  if not finite.size:
    return {}
  low, high = finite.min(), finite.max()
  digits = np.log10([1, 2, 5] if high - low < 2 else [1])
  every = max(1, int(high - low) // 4)
  powers = np.arange(np.floor(low), np.ceil(high) + 1, every)
  ticks = np.add.outer(powers, digits).ravel()
  ticks = ticks[(ticks >= low) & (ticks <= high)]
  return {
    'tickvals': _compact(ticks),
    'ticktext': [f'{10**t:,.4g}' for t in ticks],
  }


def _raw(value: float) -> str:
  return f'{value:,.5g}' if np.isfinite(value) else str(value)


def _compact(values: Float[np.ndarray, '...']) -> Any:
  """Nested lists with five digits; None for what JSON can't say."""
  if values.ndim > 1:
    return [_compact(row) for row in values]
  return [float(f'{v:.5g}') if np.isfinite(v) else None for v in values]
