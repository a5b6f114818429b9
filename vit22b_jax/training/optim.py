"""Optimisers and schedules: gradient -> clip -> rule -> decay -> rate.

    tx, schedule = optim.make(
      config.optim, steps_per_epoch=351, total_steps=70_200
    )

The rules agree with PyTorch's of the same name, which the paper's code uses:
AdamW decays weights apart from the gradient, the others add the decay to the
gradient. Clipping comes first, on the gradient as it is.
"""

import dataclasses
import functools
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
# (arXiv:2302.05442, section 4.1): hence T below. The part over which the rate
# falls to 0 is that paper's last 30k of 177k steps; these lengths, unlike the
# formula, were not compared with the paper's text again.
RSQRT_COOLDOWN = 0.17
RSQRT_TIMESCALE = 10_000


def make(
  section: Mapping[str, Any], *, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
  """Builds the gradient transformation and the learning rate it follows.

  Args:
    section: the keys of `optim` in configs/common.py that say how to step; the
      others belong to the training step.
    steps_per_epoch: optimiser steps in one pass over the training part.
    total_steps: length of the run in optimiser steps.

  Returns:
    tx, whose `update` gives what to add to the parameters, and schedule, from
    the number of steps taken to the learning rate of the next.

  Raises:
    errors.UserError: a name or a duration isn't known.
  """

  def steps(key):
    return durations.steps(
      section[key], steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )

  name = section['schedule']
  if name in LINEAR and 'decay_start' not in section:
    raise errors.UserError(
      f'optim.schedule={name!r} goes by optim.decay_start, which this config '
      'does not have: it is a schedule of image translation.'
    )
  schedule = make_schedule(
    name,
    learning_rate=section['learning_rate'],
    warmup_steps=steps('warmup'),
    total_steps=total_steps,
    decay_start=steps('decay_start') if name in LINEAR else 0,
    steps_per_epoch=steps_per_epoch,
  )
  clip = section['clip_norm']
  decay = _decay(section)
  rule = _rule(section)
  tx = optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    *((rule, decay) if section['name'] == 'adamw' else (decay, rule)),
    optax.scale_by_learning_rate(schedule),
  )
  return tx, schedule


def steps_taken(opt_state: PyTree) -> Int[Array, '']:
  """Returns how many updates a state of `make`'s transformation has seen.

  It is what the schedule goes by: steps that were skipped don't count.
  """
  # The rate's own state is the chain's last.
  return optax.tree_utils.tree_get_all_with_path(opt_state, 'count')[-1][1]


@dataclasses.dataclass(frozen=True)
class _Run:
  """Holds the lengths that a decay goes by, in steps."""

  warmup: int
  total: int
  decay_start: int
  epoch: int


def make_schedule(
  name: str,
  *,
  learning_rate: float,
  warmup_steps: int,
  total_steps: int,
  decay_start: int = 0,
  steps_per_epoch: int = 1,
) -> Schedule:
  """Returns the rate by step: a linear warm-up, then a decay.

  With t = (step - warmup_steps) / (total_steps - warmup_steps), the decays are

    multistep: halved at 30, 60 and 90 % of the run, as the paper's
    cosine:    (1 + cos(pi t)) / 2
    rsqrt:     sqrt(T / (T + step - warmup_steps)), T the warm-up's length,
               (10,000 without one), times
               min(1, (1 - step / total_steps) / 0.17)
    constant:  1
    linear:    1 - max(0, e + 1 - s) / (n + 1), CycleGAN's
    linear_released: 1 - max(0, e - s) / n, never below 0, the paper's CycleGAN

  where e is the epoch, counted from 0, which has begun; s is `decay_start` in
  epochs, and n how many are left from there. They stay 1 until `decay_start`.

  The warm-up multiplies by (step + 1) / warmup_steps, so no step is lost.

    >>> schedule = make_schedule(
    ...   'multistep', learning_rate=1.0, warmup_steps=4, total_steps=100
    ... )
    >>> [float(schedule(step)) for step in (0, 3, 29, 30, 60, 90)]
    [0.25, 1.0, 1.0, 0.5, 0.25, 0.125]

  Args:
    name: one of SCHEDULES.
    learning_rate: at the peak, above 0.
    warmup_steps: at least 0.
    total_steps: length of the run, at least 1.
    decay_start: the step from which the linear schedules fall.
    steps_per_epoch: at least 1; they fall once an epoch.

  Raises:
    errors.UserError: `name` is not one of these.
  """
  if name not in SCHEDULES:
    raise errors.UserError(_unknown('schedule', name, SCHEDULES))
  decay = SCHEDULES[name]
  run = _Run(warmup_steps, total_steps, decay_start, steps_per_epoch)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
    return learning_rate * rise * decay(step, run)

  return schedule


def _multistep(step, run):
  milestones = jnp.asarray([round(part * run.total) for part in MULTISTEP])
  return 0.5 ** jnp.sum(step >= milestones)


def _cosine(step, run):
  t = (step - run.warmup) / max(run.total - run.warmup, 1)
  return (1 + jnp.cos(jnp.pi * jnp.clip(t, 0.0, 1.0))) / 2


def _rsqrt(step, run):
  scale = run.warmup or RSQRT_TIMESCALE
  cooldown = (1 - step / run.total) / RSQRT_COOLDOWN
  since = jnp.maximum(step - run.warmup, 0)
  return jnp.sqrt(scale / (scale + since)) * jnp.clip(cooldown, 0.0, 1.0)


def _constant(step, run):
  del step, run
  return 1.0


def _linear(step, run, ahead=1):
  whole = (run.total - run.decay_start) / run.epoch + ahead
  # In integers: XLA multiplies by 1 / epoch, and 49 * (1 / 49) is below 1.
  epoch = step.astype(jnp.int32) // run.epoch
  left = run.total / run.epoch - epoch
  factor = jnp.clip(left / max(whole, 1e-9), 0.0, 1.0)
  return jnp.where(step < run.decay_start, 1.0, factor)


def _linear_released(step, run):
  return _linear(step, run, ahead=0)


# CycleGAN's own; they go by `decay_start`.
LINEAR = {'linear': _linear, 'linear_released': _linear_released}
SCHEDULES = {
  'multistep': _multistep,
  'cosine': _cosine,
  'rsqrt': _rsqrt,
  'constant': _constant,
  **LINEAR,
}


def _rule(section: Mapping[str, Any]) -> optax.GradientTransformation:
  """Returns the update direction, before the rate."""
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


def _decay(section: Mapping[str, Any]) -> optax.GradientTransformation:
  """Adds what decays, times its rate; classifiers may have one for the head.

  A high decay of the head alone makes features that transfer better: "Scaling
  Vision Transformers", arXiv:2106.04560, section 3.1.
  """
  kind, rate = section['decay'], section['weight_decay']
  if kind not in DECAYS:
    raise errors.UserError(_unknown('decay', kind, DECAYS))
  of_head = section.get('head_weight_decay')  # translations have no head
  if of_head is None:
    mask = matrices if kind == 'matrices' else None
    return optax.add_decayed_weights(rate, mask=mask)

  def decays(head):
    def chosen(names):
      return (kind == 'all' or _is_matrix(names)) and ('head' in names) == head

    return functools.partial(_by_name, chosen)

  return optax.chain(
    optax.add_decayed_weights(rate, mask=decays(head=False)),
    optax.add_decayed_weights(of_head, mask=decays(head=True)),
  )


def matrices(params: PyTree) -> PyTree[bool]:
  """Marks weight matrices: the leaves that are called `kernel`.

  >>> matrices({'head': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}})
  {'head': {'bias': False, 'kernel': True}}
  """
  return _by_name(_is_matrix, params)


def _is_matrix(names: list[str]) -> bool:
  return names[-1] == 'kernel'


def _by_name(
  chosen: Callable[[list[str]], bool], params: PyTree
) -> PyTree[bool]:
  """Asks `chosen` about the names that lead to each leaf."""

  def at(path, leaf):
    del leaf
    # A boxed parameter has its attribute `value` at the end of the path.
    names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    return chosen(names)

  return jax.tree_util.tree_map_with_path(at, params)


def _unknown(key: str, value: str, known: Any) -> str:
  return f'optim.{key}={value!r}: expected one of {", ".join(known)}'
