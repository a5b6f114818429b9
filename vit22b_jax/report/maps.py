"""A run's heat maps as Plotly figures: layers by step, and confusion."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax.report import charts, thin, workdir


class Statistic(NamedTuple):
  """How a per-layer statistic is drawn.

  Attributes:
    title: what it is, as a reader calls it.
    reduce: what stands for several steps, 'max' or 'min': the worse end.
    is_log: colours follow log10, up to charts.CAP.
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
_NAMED_CLASSES = 30  # more labels than this don't fit on the axes
_NUMBERED_CLASSES = 12  # nor more columns of counts


def layers(run: workdir.Run) -> dict[str, charts.Figure]:
  """A heat map, layer by step, of each per-layer statistic recorded."""
  figures = {}
  for name, statistic in STATISTICS.items():
    recorded = run.layers(name)
    if recorded:
      figures[statistic.title] = _by_step(*recorded, statistic, run.onset)
  return figures


def extremes(
  values: Float[np.ndarray, 'depth rows'], statistic: Statistic
) -> tuple[Int[np.ndarray, 'buckets'], Float[np.ndarray, 'depth buckets']]:
  """The first row of each slice of steps, and the slices' worse ends."""
  return thin.buckets(values, _COLUMNS, statistic.reduce)


def confusion(
  counts: Int[np.ndarray, 'C C'], names: list[str]
) -> charts.Figure:
  """Confusion matrix: rows are true classes, colours parts of a row."""
  total = np.maximum(counts.sum(1, keepdims=True), 1)
  few = len(names) <= _NAMED_CLASSES
  trace = {
    'type': 'heatmap',
    'z': charts.compact(counts / total),
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
  axis = {
    'type': 'category',
    'showgrid': False,
    'showticklabels': few,
    'ticks': '',
  }
  return {
    'data': [trace],
    'layout': {
      'xaxis': axis | {'title': {'text': 'predicted'}, 'tickangle': -45},
      'yaxis': axis | {'title': {'text': 'true'}, 'autorange': 'reversed'},
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
    drawn = np.log10(np.clip(worst, 1e-12, charts.CAP))
    bar |= _log_ticks(drawn)
  width = -(-len(steps) // len(starts))
  each = f'{width:,} steps from' if width > 1 else 'step'
  trace = {
    'type': 'heatmap',
    'x': steps[starts].astype(int).tolist(),
    'y': list(range(len(values))),
    'z': charts.compact(drawn),
    'text': [[charts.raw(v) for v in row] for row in worst],
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
    'tickvals': charts.compact(ticks),
    'ticktext': [f'{10**t:,.4g}' for t in ticks],
  }
