"""Draws layers by step, confusion and calibration as Plotly figures."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax.report import charts, downsample, scores, traces
from vit22b_jax.runtime import runs


class Statistic(NamedTuple):
  """A per-layer statistic and how it is drawn."""

  title: str
  reduce: str  # 'max' or 'min' of several steps, the worse end
  is_log: bool  # colors follow log10, up to traces.CAP


STATISTICS = {
  'attn_logit_max': Statistic('Largest attention logit', 'max', True),
  'attn_entropy': Statistic('Attention entropy (nats)', 'min', False),
  'residual_rms': Statistic('Residual stream RMS', 'max', True),
  'grad_norm': Statistic('Gradient norm', 'max', True),
}
COLUMNS = 150  # of a heat map over steps
# A larger confusion matrix is listed, not drawn.
MATRIX_CLASSES = 200
_NAMED_CLASSES = 30  # more labels than this are small
_NUMBERED_CLASSES = 12  # nor more columns of counts


def layers(run: runs.Run) -> dict[str, charts.Figure]:
  """Returns a heat map, layer by step, of each per-layer statistic recorded."""
  return {
    statistic.title: _by_step(*recorded, statistic, run.onset)
    for name, statistic in STATISTICS.items()
    if (recorded := run.layers(name))
  }


def confusion(
  counts: Int[np.ndarray, 'C C'], names: list[str]
) -> charts.Figure:
  """Returns a confusion matrix; colors are parts of a true class."""
  few = len(names) <= _NAMED_CLASSES
  trace = {
    'type': 'heatmap',
    'z': traces.compact(counts / np.maximum(counts.sum(1, keepdims=True), 1)),
    'x': names,
    'y': names,
    'customdata': counts.tolist(),
    'hovertemplate': 'true %{y}<br>predicted %{x}'
    '<br>%{customdata} images, %{z:.1%} of the class<extra></extra>',
    'colorscale': '$steep',
    'zmin': 0,
    'zmax': 1,
    'showscale': False,
    'xgap': int(few),
    'ygap': int(few),
  }
  if len(names) <= _NUMBERED_CLASSES:
    trace |= {'text': counts.tolist(), 'texttemplate': '%{text}'}
  axis = {'type': 'category', 'showgrid': False, 'ticks': ''}
  if not few:  # every class has its label
    axis |= {'tickmode': 'linear', 'dtick': 1, 'tickfont': {'size': 7}}
  x = {'title': {'text': 'predicted'}, 'tickangle': -45 if few else -90}
  y = {'title': {'text': 'true'}, 'autorange': 'reversed'}
  return {'data': [trace], 'layout': {'xaxis': axis | x, 'yaxis': axis | y}}


def reliability(found: scores.Calibration) -> charts.Figure:
  """Returns accuracy by confidence, beside the diagonal of no error."""
  line = {
    'x': traces.compact(found.confidence),
    'y': traces.compact(found.accuracy),
    'customdata': [f'{count:,} images' for count in found.count],
    'mode': 'lines+markers',
    'line': {'color': '$train', 'width': 1.6},
    'hovertemplate': 'confidence %{x:.1%}: %{y:.1%} right, %{customdata}'
    '<extra></extra>',
  }
  diagonal = {'x': [0, 1], 'y': [0, 1]} | traces.dotted()
  axis = {'tickformat': '.0%', 'range': [0, 1]}
  layout = {
    'xaxis': axis | {'title': {'text': 'confidence'}},
    'yaxis': axis,
    'showlegend': False,
    'hovermode': 'closest',
  }
  return {'data': [line, diagonal], 'layout': layout}


def _by_step(
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'depth rows'],
  statistic: Statistic,
  onset: dict[str, Any] | None,
) -> charts.Figure:
  starts, worst = downsample.buckets(values, COLUMNS, statistic.reduce)
  drawn = worst
  bar: dict[str, Any] = {'thickness': 10, 'outlinewidth': 0}
  if statistic.is_log:
    drawn = np.log10(np.clip(worst, 1e-12, traces.CAP))
    bar |= _log_ticks(drawn[np.isfinite(drawn)])
  width = -(-len(steps) // len(starts))
  each = f'{width:,} steps from' if width > 1 else 'step'
  trace = {
    'type': 'heatmap',
    'x': steps[starts].astype(int).tolist(),
    'y': list(range(len(values))),
    'z': traces.compact(drawn),
    'text': [[traces.raw(v) for v in row] for row in worst],
    'hovertemplate': f'block %{{y}}, %{{text}}<br>{each} %{{x}}<extra></extra>',
    'hoverongaps': True,
    'colorscale': '$scale',
    'colorbar': bar,
  }
  layout = {
    'xaxis': charts.step_axis(int(steps[0]), int(steps[-1])),
    'yaxis': {'title': {'text': 'block'}, 'dtick': max(1, len(values) // 6)},
    'plot_bgcolor': '$bad',  # seen where a value is not finite
    'shapes': charts.onset_line(onset),
  }
  return {'data': [trace], 'layout': layout}


def _log_ticks(exponents: Float[np.ndarray, 'values']) -> dict[str, Any]:
  """Returns color-bar ticks at round raw values of a log10 scale."""
  if not exponents.size:
    return {}
  low, high = exponents.min(), exponents.max()
  if high - low < 0.7:  # perhaps without a round value
    values = np.linspace(10**low, 10**high, 4)
    text = [f'{value:,.3g}' for value in values]
    return {'tickvals': traces.compact(np.log10(values)), 'ticktext': text}
  digits = np.log10([1, 2, 5] if high - low < 2 else [1])
  every = max(1, int(high - low) // 4)
  powers = np.arange(np.floor(low), np.ceil(high) + 1, every)
  ticks = np.add.outer(powers, digits).ravel()
  text = [f'{10**t:,.4g}' for t in ticks]
  return {'tickvals': traces.compact(ticks), 'ticktext': text}
