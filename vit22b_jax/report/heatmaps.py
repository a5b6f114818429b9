"""Draws layers by step, confusion and calibration as Plotly figures."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax.report import charts, downsample, scores, traces
from vit22b_jax.runtime import runs


class Statistic(NamedTuple):
  """A per-layer statistic and how it is drawn.

  Attributes:
    title: its name for readers.
    reduce: 'max' or 'min' of several steps, the worse end.
    is_log: colors follow log10, up to traces.CAP.
  """

  title: str
  reduce: str
  is_log: bool


STATISTICS = {
  'attn_logit_max': Statistic('Largest attention logit', 'max', True),
  'attn_entropy': Statistic('Attention entropy (nats)', 'min', False),
  'residual_rms': Statistic('Residual stream RMS', 'max', True),
  'grad_norm': Statistic('Gradient norm', 'max', True),
}
# A larger confusion matrix is listed, not drawn.
MATRIX_CLASSES = 200
_COLUMNS = 150  # of a heat map over steps
_NAMED_CLASSES = 30  # more labels than this are small
_NUMBERED_CLASSES = 12  # nor more columns of counts


def layers(run: runs.Run) -> dict[str, charts.Figure]:
  """Returns a heat map, layer by step, of each per-layer statistic recorded."""
  figures = {}
  for name, statistic in STATISTICS.items():
    recorded = run.layers(name)
    if recorded:
      figures[statistic.title] = _by_step(*recorded, statistic, run.onset)
  return figures


def extremes(
  values: Float[np.ndarray, 'depth rows'], statistic: Statistic
) -> tuple[Int[np.ndarray, 'buckets'], Float[np.ndarray, 'depth buckets']]:
  """Returns the first row of each slice of steps, and the worse ends."""
  return downsample.buckets(values, _COLUMNS, statistic.reduce)


def confusion(
  counts: Int[np.ndarray, 'C C'], names: list[str]
) -> charts.Figure:
  """Returns a confusion matrix; colors are parts of a true class."""
  total = np.maximum(counts.sum(1, keepdims=True), 1)
  few = len(names) <= _NAMED_CLASSES
  trace = {
    'type': 'heatmap',
    'z': traces.compact(counts / total),
    'x': names,
    'y': names,
    'customdata': counts.tolist(),
    'hovertemplate': 'true %{y}<br>predicted %{x}'
    '<br>%{customdata} images, %{z:.1%} of the class<extra></extra>',
    'colorscale': '$steep',
    'zmin': 0,
    'zmax': 1,
    'showscale': False,
    'xgap': 1 if few else 0,
    'ygap': 1 if few else 0,
  }
  if len(names) <= _NUMBERED_CLASSES:
    trace |= {'text': counts.tolist(), 'texttemplate': '%{text}'}
  axis = {'type': 'category', 'showgrid': False, 'ticks': ''}
  angle = -45 if few else -90
  if not few:  # every class has its label
    axis |= {'tickmode': 'linear', 'dtick': 1, 'tickfont': {'size': 7}}
  return {
    'data': [trace],
    'layout': {
      'xaxis': axis | {'title': {'text': 'predicted'}, 'tickangle': angle},
      'yaxis': axis | {'title': {'text': 'true'}, 'autorange': 'reversed'},
    },
  }


def reliability(found: scores.Calibration) -> charts.Figure:
  """Returns accuracy by confidence, beside the diagonal of no error."""
  counts = [f'{count:,} images' for count in found.count]
  line = {
    'name': 'accuracy',
    'x': traces.compact(found.confidence),
    'y': traces.compact(found.accuracy),
    'customdata': counts,
    'mode': 'lines+markers',
    'line': {'color': '$train', 'width': 1.6},
    'hovertemplate': 'confidence %{x:.1%}: %{y:.1%} right, %{customdata}'
    '<extra></extra>',
  }
  diagonal = {
    'x': [0, 1],
    'y': [0, 1],
    'mode': 'lines',
    'line': {'color': '$muted', 'width': 1, 'dash': 'dot'},
    'hoverinfo': 'skip',
  }
  axis = {'tickformat': '.0%', 'range': [0, 1]}
  return {
    'data': [line, diagonal],
    'layout': {
      'xaxis': axis | {'title': {'text': 'confidence'}},
      'yaxis': axis,
      'showlegend': False,
      'hovermode': 'closest',
    },
  }


def _by_step(
  steps: Int[np.ndarray, 'rows'],
  values: Float[np.ndarray, 'depth rows'],
  statistic: Statistic,
  onset: dict[str, Any] | None,
) -> charts.Figure:
  starts, worst = extremes(values, statistic)
  drawn = worst
  bar: dict[str, Any] = {'thickness': 10, 'outlinewidth': 0}
  if statistic.is_log:
    drawn = np.log10(np.clip(worst, 1e-12, traces.CAP))
    bar |= _log_ticks(drawn)
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
  return {
    'data': [trace],
    'layout': {
      'xaxis': charts.step_axis(int(steps[0]), int(steps[-1])),
      'yaxis': {'title': {'text': 'block'}, 'dtick': max(1, len(values) // 6)},
      'plot_bgcolor': '$bad',  # seen where a value is not finite
      'shapes': charts.onset_line(onset),
    },
  }


def _log_ticks(exponents: Float[np.ndarray, 'depth buckets']) -> dict[str, Any]:
  """Returns color-bar ticks at round raw values of a log10 scale."""
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
    'tickvals': traces.compact(ticks),
    'ticktext': [f'{10**t:,.4g}' for t in ticks],
  }
