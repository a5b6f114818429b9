"""Optimisers and schedules: gradient -> clip -> rule -> decay -> rate.

    tx, schedule = optim.make(
      config.optim, steps_per_epoch=351, total_steps=70_200
    )

The rules agree with PyTorch's of the same name, which the paper's code uses:
AdamW decays weights apart from the gradient, the others add the decay to the
gradient. Clipping comes first, on the gradient as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from vit22b_jax import durations, errors

Schedule = Callable[[Int[Array, ''] | int], Float[Array, '']]

# Released code of the paper: half the rate at these parts of the run.
MULTISTEP = (0.3, 0.6, 0.9)
# `rsqrt` is the schedule of that name in big_vision's `utils.py`, from the
# authors of ViT-22B: https://github.com/google-research/big_vision. Its time
# scale there is 10k steps, which is also the warm-up's length in ViT-22B
# (arXiv:2302.05442, training details): hence T below. The part over which the
# rate falls to 0 is that paper's last 30k of 177k steps; these lengths, unlike
# the formula, were not compared with the paper's text again.
RSQRT_COOLDOWN = 0.17
RSQRT_TIMESCALE = 10_000


def make(
  section: Mapping[str, Any], *, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
  """Builds the gradient transformation and the learning rate it follows.

  Args:
    section: the keys of `optim` in configs/common.py, without `accumulate`
      and `ema`, which belong to the training step.
    steps_per_epoch: optimiser steps in one pass over the training part.
    total_steps: length of the run in optimiser steps.

  Returns:
    tx, whose `update` gives what to add to the parameters, and schedule, from
    the number of steps taken to the learning rate of the next.

  Raises:
    errors.UserError: a name or a duration isn't known.
  """
  warmup = durations.steps(
    section['warmup'], steps_per_epoch=steps_per_epoch, total_steps=total_steps
  )
  schedule = make_schedule(
    section['schedule'],
    learning_rate=section['learning_rate'],
    warmup_steps=warmup,
    total_steps=total_steps,
  )
  clip = section['clip_norm']
  decay = optax.add_decayed_weights(
    section['weight_decay'], mask=_decay_mask(section['decay'])
  )
  rule = _rule(section)
  tx = optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    *((rule, decay) if section['name'] == 'adamw' else (decay, rule)),
    optax.scale_by_learning_rate(schedule),
  )
  return tx, schedule


def steps_taken(opt_state: PyTree) -> Int[Array, '']:
  """How many updates a state of `make`'s transformation has seen.

  It is what the schedule goes by: steps that were skipped don't count.
  """
  # The rate's own state is the chain's last.
  return optax.tree_utils.tree_get_all_with_path(opt_state, 'count')[-1][1]


def make_schedule(
  name: str, *, learning_rate: float, warmup_steps: int, total_steps: int
) -> Schedule:
  """Learning rate by step: a linear warm-up to `learning_rate`, then a decay.

  With t = (step - warmup_steps) / (total_steps - warmup_steps), the decays are

    multistep: halved at 30, 60 and 90 % of the run, as the paper's
    cosine:    (1 + cos(pi t)) / 2
    rsqrt:     sqrt(T / (T + step - warmup_steps)), T the warm-up's length,
               (10,000 without one), times
               min(1, (1 - step / total_steps) / 0.17)
    constant:  1

  The warm-up multiplies by (step + 1) / warmup_steps, so no step is lost.

  Args:
    name: multistep, cosine, rsqrt or constant.
    learning_rate: at the peak, above 0.
    warmup_steps: at least 0.
    total_steps: length of the run, at least 1.

  Raises:
    errors.UserError: `name` is not one of these.
  """
  if name not in SCHEDULES:
    raise errors.UserError(_unknown('schedule', name, SCHEDULES))
  decay = SCHEDULES[name]

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
    return learning_rate * rise * decay(step, warmup_steps, total_steps)

  return schedule


def _multistep(step, warmup, total):
  del warmup
  milestones = jnp.asarray([round(part * total) for part in MULTISTEP])
  return 0.5 ** jnp.sum(step >= milestones)


def _cosine(step, warmup, total):
  t = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
  return (1 + jnp.cos(jnp.pi * t)) / 2


def _rsqrt(step, warmup, total):
  scale = warmup or RSQRT_TIMESCALE
  cooldown = (1 - step / total) / RSQRT_COOLDOWN
  return jnp.sqrt(scale / (scale + jnp.maximum(step - warmup, 0))) * jnp.clip(
    cooldown, 0.0, 1.0
  )


def _constant(step, warmup, total):
  del step, warmup, total
  return 1.0


SCHEDULES = {
  'multistep': _multistep,
  'cosine': _cosine,
  'rsqrt': _rsqrt,
  'constant': _constant,
}


def _rule(section: Mapping[str, Any]) -> optax.GradientTransformation:
  """The update direction, before the rate."""
  name = section['name']
  if name in ('adamw', 'adam'):
    return optax.scale_by_adam(
      b1=section['b1'], b2=section['b2'], eps=section['eps']
    )
  if name == 'sgd':
    return optax.trace(decay=section['momentum'])
  if name == 'adagrad':
    # PyTorch adds eps to the root, optax its argument to what is under it.
    return optax.scale_by_rss(
      initial_accumulator_value=0.0, eps=section['eps'] ** 2
    )
  raise errors.UserError(_unknown('name', name, OPTIMIZERS))


OPTIMIZERS = ('adamw', 'adam', 'sgd', 'adagrad')
DECAYS = ('matrices', 'all')


def _decay_mask(decay: str) -> Callable[[PyTree], PyTree[bool]] | None:
  if decay not in DECAYS:
    raise errors.UserError(_unknown('decay', decay, DECAYS))
  return matrices if decay == 'matrices' else None


def matrices(params: PyTree) -> PyTree[bool]:
  """True at weight matrices: the leaves that are called `kernel`."""

  def is_matrix(path, leaf):
    del leaf
    # A boxed parameter has its attribute `value` at the end of the path.
    names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    return names[-1] == 'kernel'

  return jax.tree_util.tree_map_with_path(is_matrix, params)


def _unknown(key: str, value: str, known: Any) -> str:
  return f'optim.{key}={value!r}: expected one of {", ".join(known)}'
