"""Short trainings of one config at any learning rate, by one compiled step.

    flipped, value = trials.flip(config, 'model.pre_norm')
    program = trials.Program(flipped, mesh, data)
    program.trial(0.004, steps=150, stop=True)['exploded']

The rate is part of the optimizer's state, an input of the step.
"""

import contextlib
import copy
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification
from vit22b_jax.training import explain

# What is flipped alone: the value when off, and when on. Those that add no work
# to a step come first, then norms.
SWITCHES: dict[str, tuple[Any, Any]] = {
  'optim.warmup': ('0 steps', '50 steps'),
  'optim.clip_norm': (0.0, 10.0),
  'model.init': ('torch', 'vit'),
  'model.final_norm': (False, True),
  'model.qk_norm': (False, True),
  'model.pre_norm': (False, True),
  'model.mlp_norm': (False, True),
  'model.sum_norm': (False, True),
}

_CURVES = ('max_logit', 'max_abs_grad')
_LAST = 10  # steps whose mean loss counts, and that tell a recovery

Trial = dict[str, Any]


def flip(config: ConfigDict, switch: str) -> tuple[ConfigDict, Any]:
  """Returns the config with one switch flipped, and the switch's new value.

  A key that is None takes what the block's preset says, so that is flipped.
  The switch '' changes nothing.
  """
  flipped = copy.deepcopy(config)
  with flipped.unlocked():
    # The rate is the optimizer state's; only the thresholds count, at once.
    flipped.optim.learning_rate = 1.0
    flipped.diagnostics.update(
      on_explosion='record', ignore='0 steps', zscore=1e9, per_layer=True
    )
    if not switch:
      return flipped, None
    off, on = SWITCHES[switch]
    section, name = switch.split('.')
    now = flipped[section][name]
    if now is None:
      model = classification.build_model(config, num_classes=2)
      now = getattr(model, {'init': 'init_kind'}.get(name, name))
    flipped[section][name] = value = on if now in (off, '0 steps', 0) else off
  return flipped, value


class Program:
  """Trains a config from `flip` for a few steps at any learning rate.

  Raises:
    UserError: the weights of `init_from` don't fit the config.
  """

  def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh, data: Any):
    self._task = classification.Classification(
      config, mesh, list(data.names), data
    )
    rate = optax.inject_hyperparams(optax.scale)(step_size=1.0)
    self._task.use_optimizer(optax.chain(self._task.tx, rate))
    self._fresh = self._task.init_state()
    if config.init_from:
      step = evaluate.chosen_step(self._task, config.init_from)
      self._fresh = self._task.with_pretrained(
        self._fresh, config.init_from, step
      )

  def trial(self, rate: float, steps: int, stop: bool) -> Trial:
    """Trains from the start at one rate.

    Args:
      rate: the learning rate; the config's warm-up and schedule multiply it.
      steps: at most so many.
      stop: at an explosion; else only where training would stop anyway, at a
        loss that isn't finite.

    Returns:
      A row of probe.json: `rate steps stop exploded` (the step, or None),
      `recovered` (the last steps are in bounds again), `moved_first layer
      last_loss`, and the curves `max_logit` and `max_abs_grad` by step.
    """
    task, rows = self._task, []
    found = {'exploded': None, 'moved_first': None, 'layer': None}
    state = jax.tree.map(jnp.copy, self._fresh)  # steps donate it
    opt_state = optax.tree.set(state.opt_state, step_size=jnp.float32(rate))
    state = state.replace(opt_state=opt_state)
    with contextlib.closing(task.train_batches()) as batches:
      for batch in itertools.islice(batches, steps):
        with sharding.mesh_context(task.mesh):
          state, scalars = task.train_step(state, batch)
        row = dict(zip(task.scalars.all, np.asarray(scalars), strict=True))
        rows.append(row)
        explodes = row['verdict/onset'] or not row['verdict/finite']
        if explodes and not found['exploded']:
          found = {'exploded': len(rows), **self._explain(state, row)}
        if (explodes and stop) or row['verdict/stopped']:
          break
    # Gradients of float16 may overflow: the loss scale's search meets that,
    # unless nothing else is left.
    stopped = int(row['verdict/stopped'])
    overflows = int(state.monitor.kept) + stopped
    if overflows >= _LAST and not found['exploded']:
      found['exploded'] = len(rows) - overflows + 1
    calm = not stopped and int(state.monitor.calm) >= _LAST
    return {
      'rate': rate,
      'steps': steps,
      'stop': stop,
      **found,
      'recovered': bool(found['exploded']) and calm and overflows < _LAST,
      'last_loss': _number(np.mean([row['loss'] for row in rows[-_LAST:]])),
      **{key: [_number(row[key]) for row in rows] for key in _CURVES},
    }

  def _explain(self, state: Any, row: dict[str, float]) -> dict[str, Any]:
    """Names the signal that moved first, and the layer."""
    signals = {name: row[name] for name in self._task.scalars.signals}
    history, before = state.monitor.history, int(state.step) - 1
    return explain.first_to_move(history, signals, before)


def _number(value: float) -> float | None:
  """Returns five digits; None for what JSON can't say."""
  return float(f'{value:.5g}') if np.isfinite(value) else None
