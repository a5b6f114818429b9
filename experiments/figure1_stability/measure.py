"""Measures a run of Figure 1 for its row: peaks, explosion, origin."""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.figure1_stability.cells import CAP, START_UP
from vit22b_jax.report import downsample
from vit22b_jax.runtime import runs

JUDGED = ('max_logit', 'max_abs_grad')
# Per block: which of these leaves its start's range first, and where.
SIGNALS = ('attn_logit_max', 'residual_rms', 'grad_norm')
_FACTOR = 10.0  # times the value at the first step
_POINTS = 200  # buckets of a kept curve
_LAST = 50  # steps whose mean loss says whether it learns


def measure(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the numbers of a run, from its diagnostics.csv."""
  run = runs.read(workdir)
  table = run.diagnostics
  steps = table['step'].astype(int)
  beyond = np.zeros(len(steps), bool)
  for column in JUDGED:
    beyond |= ~(table[column] < CAP)  # NaN counts as beyond
  # With a final norm the stream overflows before a logit or gradient is large,
  # and the detector goes by absolute logits, the table by signed ones.
  judged = [e['step'] for e in run.events if e['kind'] != 'transient']
  beyond |= np.isin(steps, judged)
  found = steps[beyond]
  return {
    'explosion': int(found[0]) if len(found) else None,
    'finite': bool(np.isfinite(table['loss']).all()),
    'steps_beyond': len(found),
    'steps_beyond_late': int((found > START_UP).sum()),
    'recovered': bool(len(found) and not beyond[-_LAST:].any()),
    'peak': {c: _peak(steps, table[c]) for c in JUDGED},
    'peak_late': {c: _peak(steps, table[c], START_UP) for c in JUDGED},
    'last_loss': _number(np.mean(table['loss'][-_LAST:])),
    'origin': {name: _origin(run, name) for name in SIGNALS},
    'curve': _curve(steps, table),
  }


def _peak(
  steps: np.ndarray, values: Float[np.ndarray, 'rows'], after: int = 0
) -> list[Any] | None:
  """Returns [value, step] of the largest finite value after a step."""
  chosen = np.isfinite(values) & (steps > after)
  if not chosen.any():
    return None
  at = np.flatnonzero(chosen)[np.argmax(values[chosen])]
  return [_number(values[at]), int(steps[at])]


def _origin(run: runs.Run, name: str) -> dict[str, Any] | None:
  """Returns where a signal first was ten times its value at the first step.

  Gradients below a head of zeros begin at the second step.

  Returns:
    `step`, the first such; `layer`, that of the largest factor then; `factor`;
    `layers`, how many had reached it. None when none did.
  """
  found = run.layers(name)
  if found is None:
    return None
  steps, values = found
  first = np.argmax(values > 0, axis=1)[:, None]
  start = np.take_along_axis(values, first, axis=1)
  factors = np.divide(values, start, out=np.zeros_like(values), where=start > 0)
  reached = ~(factors < _FACTOR)
  if not reached.any():
    return None
  at = int(np.argmax(reached.any(0)))
  worst = np.where(np.isnan(factors[:, at]), np.inf, factors[:, at])
  return {
    'step': int(steps[at]),
    'layer': int(np.argmax(worst)),
    'layers': int(reached[:, at].sum()),
    'factor': _number(worst.max()),
  }


def _curve(steps: np.ndarray, table: dict[str, Any]) -> dict[str, list[Any]]:
  """Returns steps and judged values, thinned so that peaks stay."""
  curve = {}
  for column in JUDGED:
    keep = downsample.envelope(table[column], _POINTS)
    curve[column] = [
      steps[keep].tolist(),
      [_number(value) for value in table[column][keep]],
    ]
  return curve


def _number(value: float) -> float | None:
  """Returns five digits of a number; None for what JSON can't say."""
  return float(f'{value:.5g}') if np.isfinite(value) else None
