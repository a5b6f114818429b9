"""What a step did to the model, and whether it exploded.

    row = diagnostics.measure(...)                     # inside the jitted step
    monitor, verdict = diagnostics.observe(monitor, ...)
    found = diagnostics.explain(history, names, ...)   # on the host, at onsets

The paper's Figure 1 follows the largest logit and the largest absolute gradient
entry of each iteration. This module measures those and their companions within
the step, keeps a window of them in the training state (so that a resumed run
judges as an uninterrupted one would), and tells an explosion from noise by a
fixed threshold and by a robust z-score over the window.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from vit22b_jax.models import stacking

# Columns of diagnostics.csv, in order, after `step`.
COLUMNS = (
  'loss',
  'max_logit',
  'max_abs_grad',
  'grad_norm',
  'clipped_grad_norm',
  'update_norm',
  'param_norm',
)
# What the detector judges, at the head of every window.
JUDGED = ('max_logit', 'max_abs_grad')
# Intermediates of the forward pass that per-layer columns show.
CAPTURED = ('attn_logit_max', 'attn_entropy', 'residual_rms')
# What a step tells the loop of the detector's verdict, as 0 or 1 or a number.
VERDICT = (
  'verdict/onset',
  'verdict/transient',
  'verdict/keep',
  'verdict/stopped',
  'verdict/stuck',
  'verdict/finite',
  'verdict/zscore_max_logit',
  'verdict/zscore_max_abs_grad',
)
# An onset counts as over after this many steps without a new alarm.
_CALM_STEPS = 50
# A z-score alarm also needs this factor over the window's median: a signal that
# hardly moves has a tiny spread, and noise on it a huge z-score.
_Z_FACTOR = 10.0
_MIN_HISTORY = 20
# So many steps in a row that changed nothing: the run is stuck, and stops.
STUCK_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the detector judges.

  Attributes:
    max_logit: the largest logit counts as exploded from here on.
    max_abs_grad: the largest gradient entry counts as exploded from here on.
    zscore: robust z-score, in standard deviations of the logarithm, from which
      a signal of ten times its median counts as exploded.
    window: steps that the z-score looks back.
    warmup_steps: alarms before this step are called transients: recorded, and
      never acted upon, since a cold start shoots up and recovers.
    policy: 'record', 'skip_step' (leave parameters as they are at such a step)
      or 'halt' (stop with the state before it).
  """

  max_logit: float
  max_abs_grad: float
  zscore: float
  window: int
  warmup_steps: int
  policy: str


@flax.struct.dataclass
class Monitor:
  """The detector's memory, part of the training state.

  Attributes:
    history: the last W values of S signals; slot `step % W`; NaN where empty.
    calm: steps since the last alarm.
    kept: steps in a row that left the parameters as they were.
    stopped: a step that must not be applied was met; later ones change nothing.
  """

  history: Float[Array, 'W S']
  calm: Int[Array, '']
  kept: Int[Array, '']
  stopped: Bool[Array, '']


@flax.struct.dataclass
class Verdict:
  """What the detector says of one step; all scalars.

  Attributes:
    finite: loss and gradients are finite.
    alarm: a judged signal is beyond its threshold or z-score.
    onset: an alarm that doesn't continue an earlier one.
    transient: the alarm came within the warm-up.
    keep: the parameters must stay as they were before the step.
    stuck: they have stayed so for STUCK_STEPS in a row; the run stops.
    zscore: the robust z-scores of the judged signals.
  """

  finite: Bool[Array, '']
  alarm: Bool[Array, '']
  onset: Bool[Array, '']
  transient: Bool[Array, '']
  keep: Bool[Array, '']
  stuck: Bool[Array, '']
  zscore: Float[Array, '2']


def init(window: int, num_signals: int) -> Monitor:
  """An empty memory for `num_signals` signals, JUDGED first."""
  return Monitor(
    history=jnp.full((window, num_signals), jnp.nan, jnp.float32),
    calm=jnp.asarray(_CALM_STEPS, jnp.int32),
    kept=jnp.zeros((), jnp.int32),
    stopped=jnp.asarray(False),
  )


def measure(
  *,
  loss: Float[Array, ''],
  max_logit: Float[Array, ''],
  grads: Any,
  updates: Any,
  params: Any,
  clip_norm: float,
) -> dict[str, Float[Array, '']]:
  """The columns of diagnostics.csv for one step.

  Args:
    loss: the training loss, penalties included.
    max_logit: the largest of the batch's logits, in training mode.
    grads: the gradients before clipping.
    updates: what the optimiser adds to the parameters.
    params: the parameters before the step.
    clip_norm: the threshold of global-norm clipping; 0 means none.

  Returns:
    Float32 scalars by column: loss; largest logit (signed, as in the paper's
    Figure 1); largest absolute entry of the gradients; Euclidean norms of
    gradients, clipped gradients, updates and parameters.
  """
  grad_norm = optax.tree.norm(grads)
  clipped = jnp.minimum(grad_norm, clip_norm) if clip_norm else grad_norm
  largest = [jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)]
  return {
    'loss': loss,
    'max_logit': max_logit,
    'max_abs_grad': jnp.max(jnp.stack(largest)),
    'grad_norm': grad_norm,
    'clipped_grad_norm': clipped,
    'update_norm': optax.tree.norm(updates),
    'param_norm': optax.tree.norm(params),
  }


def layer_norms(grads: dict[str, Any]) -> dict[str, Float[Array, '']]:
  """Gradient norm of each block, by column name `grad_norm/NN`."""
  if stacking.BLOCKS in grads:
    norms = jax.vmap(optax.tree.norm)(grads[stacking.BLOCKS])
    layers = stacking.layer_names(len(norms))
    named = dict(zip(layers, norms, strict=True))
  else:
    named = {
      name: optax.tree.norm(grads[name])
      for name in sorted(grads)
      if name.startswith('block_')
    }
  return {f'grad_norm/{k.removeprefix("block_")}': v for k, v in named.items()}


def layer_columns(
  captured: dict[str, Float[Array, 'depth']], layers: list[str]
) -> dict[str, Float[Array, '']]:
  """Per-layer intermediates by column name, such as `residual_rms/03`."""
  return {
    f'{name}/{layer.removeprefix("block_")}': captured[name][i]
    for name in CAPTURED
    for i, layer in enumerate(layers)
    if captured
  }


def verdict_row(
  verdict: Verdict, monitor: Monitor
) -> dict[str, Float[Array, '']]:
  """The verdict as float32 scalars, by the names in VERDICT."""
  values = (
    verdict.onset,
    verdict.transient,
    verdict.keep,
    monitor.stopped,
    verdict.stuck,
    verdict.finite,
    *verdict.zscore,
  )
  return {
    name: jnp.asarray(value, jnp.float32)
    for name, value in zip(VERDICT, values, strict=True)
  }


def observe(
  monitor: Monitor,
  signals: Float[Array, 'S'],
  loss: Float[Array, ''],
  step: Int[Array, ''],
  overflow: Bool[Array, ''],
  settings: Settings,
) -> tuple[Monitor, Verdict]:
  """Judges one step and remembers its signals. Runs inside the jitted step.

  Args:
    monitor: the memory before the step.
    signals: this step's values, JUDGED first.
    loss: this step's loss.
    step: the number of steps done before this one.
    overflow: float16 gradients overflowed, which the loss scale's search is
      expected to meet: the step is not applied, and not judged either.
    settings: thresholds and policy.
  """
  finite = (jnp.isfinite(loss) & jnp.all(jnp.isfinite(signals))) | overflow
  judged = signals[: len(JUDGED)]
  zscore, median = robust_zscore(monitor.history[:, : len(JUDGED)], judged)
  thresholds = jnp.array([settings.max_logit, settings.max_abs_grad])
  beyond = judged >= thresholds
  jumped = (zscore >= settings.zscore) & (judged >= _Z_FACTOR * median)
  alarm = finite & ~overflow & jnp.any(beyond | jumped)
  transient = alarm & (step < settings.warmup_steps)
  onset = alarm & (monitor.calm >= _CALM_STEPS) & ~monitor.stopped
  act = alarm & ~transient
  stop = monitor.stopped | ~finite
  if settings.policy == 'halt':
    stop |= act
  keep = stop | overflow
  if settings.policy == 'skip_step':
    keep |= act
  stuck = keep & ~stop & (monitor.kept + 1 >= STUCK_STEPS)
  stop |= stuck
  slot = step % monitor.history.shape[0]
  updated = Monitor(
    history=monitor.history.at[slot].set(jnp.where(overflow, jnp.nan, signals)),
    calm=jnp.where(alarm, 0, jnp.minimum(monitor.calm + 1, _CALM_STEPS)),
    kept=jnp.where(keep, monitor.kept + 1, 0),
    stopped=stop,
  )
  # A stopped run's memory stays as it was before the step that stopped it.
  remembered = jax.tree.map(
    lambda new, old: jnp.where(stop, old, new), updated, monitor
  ).replace(stopped=stop)
  return remembered, Verdict(
    finite, alarm, onset, transient, keep, stuck, zscore
  )


def robust_zscore(
  history: Float[Array, 'W S'], values: Float[Array, 'S']
) -> tuple[Float[Array, 'S'], Float[Array, 'S']]:
  """How far `values` lie from a window, in robust standard deviations.

  z = (log v - median(log h)) / (1.4826 MAD(log h)), on logarithms since the
  signals are positive and move by factors; 1.4826 makes the median absolute
  deviation estimate a normal's standard deviation
  (https://en.wikipedia.org/wiki/Median_absolute_deviation). Zero until the
  window holds 20 values.

  Returns:
    z-scores, and the window's medians (in the signals' own unit).
  """
  tiny = jnp.finfo(jnp.float32).tiny
  logs = jnp.log(jnp.maximum(history, tiny))
  median = jnp.nanmedian(logs, axis=0)
  mad = jnp.nanmedian(jnp.abs(logs - median), axis=0)
  z = (jnp.log(jnp.maximum(values, tiny)) - median) / (1.4826 * mad + 1e-3)
  count = jnp.sum(~jnp.isnan(history), axis=0)
  return jnp.where(count >= _MIN_HISTORY, z, 0.0), jnp.exp(median)


def explain(
  history: Float[np.ndarray, 'W S'],
  names: list[str],
  step: int,
  values: Float[np.ndarray, 'S'],
) -> dict[str, str | None]:
  """Which signal moved first, and in which layer, at an onset. On the host.

  Each signal is compared with the first half of its own window; the one that
  left its usual range (robust z-score of 6) earliest moved first. Ties go to
  the larger z-score.

  Args:
    history: the monitor's window, read at the step after the onset at the
      latest.
    names: the signals' names; `QUANTITY/NN` for those of block NN, and
      `QUANTITY/NAME` for those of another part of the model.
    step: the onset's step (steps done before it).
    values: the signals at the onset.

  Returns:
    `moved_first`: a signal's name, and `layer`: the first layer (`block_NN` or
    NAME) affected or None when none stands out.
  """
  window = history.shape[0]
  slots = [s % window for s in range(max(step - window + 2, 0), step)]
  before = history[slots]
  before = before[~np.isnan(before).any(axis=1)]  # no slots still empty
  if not len(before):
    return {'moved_first': None, 'layer': None}
  rows = np.concatenate([before, np.nan_to_num(values, nan=np.inf)[None]])
  half = max(len(before) // 2, 1)
  logs = np.log(np.maximum(rows, np.finfo(np.float32).tiny))
  median = np.median(logs[:half], axis=0)
  mad = np.median(np.abs(logs[:half] - median), axis=0)
  z = np.abs(logs - median) / (1.4826 * mad + 1e-3)

  def first(indices: list[int]) -> int | None:
    """Of these signals, which moved first; of several at once, which most."""
    moved = []
    for i in indices:
      beyond = np.flatnonzero(z[half:, i] >= 6.0)
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
  """Where non-finite values first appear: forward order, then backward.

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
