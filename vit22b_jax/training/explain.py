"""Finds, on the host, where an explosion or a non-finite value began.

found = explain.first_to_move(history, signals, step)
layer = explain.first_nonfinite(captured, layer_grads, layers)
"""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float

_MOVED = 6.0  # robust z-scores from a signal's usual range


def first_to_move(
  history: Float[ArrayLike, 'W S'], signals: dict[str, float], step: int
) -> dict[str, str | None]:
  """Finds which signal moved first, and in which layer, at an onset.

  Each signal is compared with the first half of its own window; the one that
  left its usual range (robust z-score of 6) earliest moved first. Ties go to
  the larger z-score.

  Args:
    history: the monitor's window, at most a step after the onset.
    signals: at the onset: `QUANTITY/NN` of block NN, or `QUANTITY/NAME`.
    step: steps done before the onset.

  Returns:
    `moved_first`: a signal's name, and `layer`: the first layer (`block_NN` or
    NAME) affected or None when none stands out.
  """
  history, names = np.asarray(history), list(signals)
  window = len(history)
  slots = [s % window for s in range(max(step - window + 2, 0), step)]
  before = history[slots]
  before = before[~np.isnan(before).any(axis=1)]  # no slots still empty
  if not len(before):
    return {'moved_first': None, 'layer': None}
  values = np.array([*signals.values()])
  rows = np.concatenate([before, np.nan_to_num(values, nan=np.inf)[None]])
  half = max(len(before) // 2, 1)
  logs = np.log(np.maximum(np.abs(rows), np.finfo(np.float32).tiny))
  median = np.median(logs[:half], axis=0)
  mad = np.median(np.abs(logs[:half] - median), axis=0)
  z = np.abs(logs - median) / (1.4826 * mad + 1e-3)

  def first(indices: list[int]) -> int | None:
    """Returns the signal that moved first; of several at once, the farthest."""
    moved = []
    for i in indices:
      beyond = np.flatnonzero(z[half:, i] >= _MOVED)
      if len(beyond):
        moved.append((beyond[0], -z[half + beyond[0], i], i))
    return min(moved)[2] if moved else None

  layered = [i for i, name in enumerate(names) if '/' in name]
  earliest, layer = first(list(range(len(names)))), first(layered)
  part = None if layer is None else names[layer].split('/')[1]
  return {
    'moved_first': None if earliest is None else names[earliest],
    'layer': f'block_{part}' if part and part.isdigit() else part,
  }


def first_nonfinite(
  captured: dict[str, Any], layer_grads: dict[str, Any], layers: list[str]
) -> str | None:
  """Finds where non-finite values appear first: forward, then backward.

  Args:
    captured: per-layer intermediates of the forward pass on the failing batch.
    layer_grads: gradient norms by `grad_norm/NN`.
    layers: the blocks' names in forward order.

  Returns:
    The layer and what it was, or None when all of them are finite.
  """
  for i, layer in enumerate(layers):
    for name in ('attn_logit_max', 'residual_rms'):
      if not np.isfinite(captured[name][i]):
        return f'{layer} ({name} in the forward pass)'
  for layer in reversed(layers):
    if not np.isfinite(layer_grads[f'grad_norm/{layer.split("_")[1]}']):
      return f'{layer} (its gradient, in the backward pass)'
  return None
