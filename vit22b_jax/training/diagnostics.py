"""Measures what a step did to the model, and tells whether it exploded.

    row = diagnostics.measure(...)                     # inside the jitted step
    monitor, verdict = diagnostics.observe(monitor, ...)

The paper's Figure 1 follows the largest logit and the largest absolute gradient
entry of each iteration. The detector tells their explosions from noise by fixed
thresholds and by robust z-scores over a window, which is part of the training
state, so that a resumed run judges as an uninterrupted one.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
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
# Signals that the detector judges, at the head of every window. Logits count by
# size: while all are negative, as those of a sigmoid loss are, the column's
# signed maximum says nothing of how far they went.
JUDGED = ('max_abs_logit', 'max_abs_grad')
# Sizes below which a judged signal is calm, whatever its window: a logit of 0.1
# moves a probability by a tenth, and Adam takes no notice of small gradients.
_CALM_SIZES = (0.1, 1e-3)
# Intermediates of the forward pass that per-layer columns show.
CAPTURED = ('attn_logit_max', 'attn_entropy', 'residual_rms')
# The detector's verdict as scalars of a step.
VERDICT = (
  'verdict/onset',  # an alarm that doesn't continue an earlier one
  'verdict/transient',  # an alarm within the warm-up
  'verdict/keep',  # the parameters must stay as they were before the step
  'verdict/stopped',  # so must they after all later steps
  'verdict/stuck',  # they have stayed so for STUCK_STEPS in a row
  'verdict/finite',  # loss and gradients are
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


class ScalarNames(NamedTuple):
  """Names the scalars that a training step returns.

  Attributes:
    columns: of diagnostics.csv, after `step`.
    signals: which the detector remembers of each step, JUDGED first.
    logged: whose means go into metrics.jsonl, beside the loss.
  """

  columns: tuple[str, ...]
  signals: tuple[str, ...]
  logged: tuple[str, ...]

  @property
  def all(self) -> tuple[str, ...]:
    """The entries of the step's vector, in order."""
    others = (*self.signals, *self.logged, 'train/learning_rate', *VERDICT)
    return tuple(dict.fromkeys((*self.columns, *others)))


def scalar_names_of_blocks(
  layers: list[str], per_layer: bool, logged: tuple[str, ...]
) -> ScalarNames:
  """Names the scalars of a model of blocks.

  With `per_layer` each has columns, and signals of its activations.
  """
  ids = [name.removeprefix('block_') for name in layers]
  columns, quantities = COLUMNS, ['grad_norm']
  if per_layer:
    columns += tuple(f'{q}/{i}' for q in (*CAPTURED, 'grad_norm') for i in ids)
    quantities += ['attn_logit_max', 'residual_rms']
  signals = tuple(f'{q}/{i}' for q in quantities for i in ids)
  return ScalarNames(columns, (*JUDGED, *signals), logged)


@flax.struct.dataclass
class Monitor:
  """Remembers the last steps for the detector; part of the training state.

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


def init(window: int, num_signals: int) -> Monitor:
  """Returns an empty memory for `num_signals` signals, JUDGED first."""
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
  max_abs_logit: Float[Array, ''],
  grads: Any,
  updates: Any,
  params: Any,
  clip_norm: float,
) -> dict[str, Float[Array, '']]:
  """Computes the columns of diagnostics.csv, and `max_abs_logit`, for a step.

  Args:
    loss: the training loss, penalties included.
    max_logit: the largest of the batch's logits, signed as in Figure 1.
    max_abs_logit: the largest absolute one.
    grads: before clipping.
    updates: what the optimizer adds to the parameters.
    params: before the step.
    clip_norm: largest global norm; 0 means no clipping.
  """
  grad_norm = optax.tree.norm(grads)
  clipped = jnp.minimum(grad_norm, clip_norm) if clip_norm else grad_norm
  largest = [jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)]
  return {
    'loss': loss,
    'max_logit': max_logit,
    'max_abs_logit': max_abs_logit,
    'max_abs_grad': jnp.max(jnp.stack(largest)),
    'grad_norm': grad_norm,
    'clipped_grad_norm': clipped,
    'update_norm': optax.tree.norm(updates),
    'param_norm': optax.tree.norm(params),
  }


def layer_norms(grads: dict[str, Any]) -> dict[str, Float[Array, '']]:
  """Computes the gradient norm of each block, by column name `grad_norm/NN`."""
  if stacking.BLOCKS in grads:
    norms = jax.vmap(optax.tree.norm)(grads[stacking.BLOCKS])
    named = dict(zip(stacking.layer_names(len(norms)), norms, strict=True))
  else:
    names = [name for name in grads if name.startswith('block_')]
    named = {name: optax.tree.norm(grads[name]) for name in names}
  return {f'grad_norm/{k.removeprefix("block_")}': v for k, v in named.items()}


def layer_columns(
  captured: dict[str, Float[Array, 'depth']], layers: list[str]
) -> dict[str, Float[Array, '']]:
  """Names per-layer intermediates by column, such as `residual_rms/03`."""
  return {
    f'{name}/{layer.removeprefix("block_")}': captured[name][i]
    for name in CAPTURED
    for i, layer in enumerate(layers)
    if captured
  }


def observe(
  monitor: Monitor,
  signals: Float[Array, 'S'],
  loss: Float[Array, ''],
  step: Int[Array, ''],
  overflow: Bool[Array, ''],
  settings: Any,
  warmup_steps: int,
) -> tuple[Monitor, dict[str, Float[Array, '']]]:
  """Judges one step and remembers its signals. Runs inside the jitted step.

  Args:
    monitor: the memory before the step.
    signals: this step's values, JUDGED first.
    loss: this step's.
    step: the number of steps done before this one.
    overflow: float16 gradients overflowed, which the loss scale's search is
      expected to meet: the step is not applied, and not judged either.
    settings: the config's `diagnostics`.
    warmup_steps: alarms before that step are transients: recorded, and never
      acted upon, since a cold start shoots up and recovers.

  Returns:
    The memory after the step; and float32 scalars by the names in VERDICT.
  """
  finite = (jnp.isfinite(loss) & jnp.all(jnp.isfinite(signals))) | overflow
  judged = jnp.abs(signals[: len(JUDGED)])
  zscore, median = robust_zscore(
    monitor.history[:, : len(JUDGED)], judged, jnp.array(_CALM_SIZES)
  )
  thresholds = jnp.array([settings.max_logit, settings.max_abs_grad])
  beyond = judged >= thresholds
  jumped = (zscore >= settings.zscore) & (judged >= _Z_FACTOR * median)
  alarm = finite & ~overflow & jnp.any(beyond | jumped)
  transient = alarm & (step < warmup_steps)
  onset = alarm & (monitor.calm >= _CALM_STEPS) & ~monitor.stopped
  act = alarm & ~transient
  stop = monitor.stopped | ~finite
  if settings.on_explosion == 'halt':
    stop |= act
  keep = stop | overflow
  if settings.on_explosion == 'skip_step':
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
  verdict = (onset, transient, keep, stop, stuck, finite, *zscore)
  values = (jnp.asarray(x, jnp.float32) for x in verdict)
  return remembered, dict(zip(VERDICT, values, strict=True))


def robust_zscore(
  history: Float[Array, 'W S'],
  values: Float[Array, 'S'],
  floor: Float[Array, 'S'],
) -> tuple[Float[Array, 'S'], Float[Array, 'S']]:
  """Measures how far `values` lie from a window, in robust deviations.

  z = (log v - median(log h)) / (1.4826 MAD(log h)), on logarithms of absolute
  values since signals move by factors; 1.4826 makes the median absolute
  deviation estimate a normal's standard deviation
  (https://en.wikipedia.org/wiki/Median_absolute_deviation). Zero until the
  window holds 20 values.

  Args:
    history: the window; NaN where empty.
    values: one of each signal.
    floor: sizes below it count as it, so that a window of zeros, or of noise
      about zero, has a scale too.

  Returns:
    z-scores, and the window's medians.
  """
  logs = jnp.log(jnp.maximum(jnp.abs(history), floor))
  median = jnp.nanmedian(logs, axis=0)
  mad = jnp.nanmedian(jnp.abs(logs - median), axis=0)
  now = jnp.log(jnp.maximum(jnp.abs(values), floor))
  z = (now - median) / (1.4826 * mad + 1e-3)
  count = jnp.sum(~jnp.isnan(history), axis=0)
  return jnp.where(count >= _MIN_HISTORY, z, 0.0), jnp.exp(median)
