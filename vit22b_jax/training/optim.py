"""Optimizers and schedules: gradient -> clip -> rule -> decay -> rate.

    tx, schedule = optim.make(
      config.optim, batch_size=128, steps_per_epoch=351, total_steps=70_200
    )

The rules agree with PyTorch's of the same name, which the paper's code uses:
AdamW decays weights apart from the gradient, the others add the decay to the
gradient. Clipping comes first, on the gradient as it is. Adagrad's eps alone
differs: optax adds its square under the root, PyTorch adds it to the root.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from vit22b_jax import durations
from vit22b_jax.models import stacking

Schedule = Callable[[Int[Array, ''] | int], Float[Array, '']]

# Released code of the paper: half the rate at these parts of the run.
MULTISTEP = (0.3, 0.6, 0.9)
# `rsqrt` is the schedule of that name in big_vision's `utils.py`, from the
# authors of ViT-22B: https://github.com/google-research/big_vision. Its time
# scale there is 10k steps, which is also the warm-up's length in ViT-22B
# (arXiv:2302.05442, section 4.1). That the rate falls to 0 over the last 30k of
# that paper's 177k steps was not compared with its text again.
RSQRT_COOLDOWN = 0.17
RSQRT_TIMESCALE = 10_000


def make(
  section: Mapping[str, Any],
  *,
  batch_size: int,
  steps_per_epoch: int,
  total_steps: int,
) -> tuple[optax.GradientTransformation, Schedule]:
  """Builds the gradient transformation and the learning rate it follows.

  Returns:
    tx, whose `update` gives what to add to the parameters, and schedule, from
    the number of steps taken to the learning rate of the next.
  """

  def steps(key):
    return durations.steps(
      section[key], steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )

  schedule = make_schedule(
    section['schedule'],
    learning_rate=peak_rate(section, batch_size),
    warmup_steps=steps('warmup'),
    total_steps=total_steps,
    decay_start=steps('decay_start') if 'decay_start' in section else 0,
    steps_per_epoch=steps_per_epoch,
  )
  clip, decay = section['clip_norm'], _decay(section)
  rule = _rule(section)
  parts = [
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    *((rule, decay) if section['name'] == 'adamw' else (decay, rule)),
    optax.scale_by_learning_rate(schedule),
  ]
  # Translations have neither of these.
  if section.get('freeze') == 'backbone':
    label = functools.partial(
      _by_name, lambda names: 'trained' if _is_head(names) else 'frozen'
    )
    kinds = {'trained': optax.chain(*parts), 'frozen': optax.set_to_zero()}
    return optax.partition(kinds, label), schedule
  if section.get('layer_decay', 1.0) != 1:
    parts.append(_scale_by_layer(section['layer_decay']))
  return optax.chain(*parts), schedule


def peak_rate(section: Mapping[str, Any], batch_size: int) -> float:
  """Returns the rate at the peak, in proportion to the batch if that is asked.

  The linear rule of Goyal et al. 2017, arXiv:1706.02677, section 2.1.
  """
  base = section['base_batch_size']
  return section['learning_rate'] * (batch_size / base if base else 1)


def steps_taken(opt_state: PyTree) -> Int[Array, '']:
  """Returns how many updates an optimizer's state has seen: none skipped."""
  # The rate's own state is the chain's last.
  return optax.tree_utils.tree_get_all_with_path(opt_state, 'count')[-1][1]


class _Run(NamedTuple):  # lengths that a decay goes by, in steps
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
  """
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


def _linear(step, run, ahead=1):
  whole = (run.total - run.decay_start) / run.epoch + ahead
  # In integers: XLA multiplies by 1 / epoch, and 49 * (1 / 49) is below 1.
  epoch = step.astype(jnp.int32) // run.epoch
  left = run.total / run.epoch - epoch
  factor = jnp.clip(left / max(whole, 1e-9), 0.0, 1.0)
  return jnp.where(step < run.decay_start, 1.0, factor)


SCHEDULES = {
  'multistep': _multistep,
  'cosine': _cosine,
  'rsqrt': _rsqrt,
  'constant': lambda step, run: 1.0,
  # CycleGAN's own; they go by `decay_start`.
  'linear': _linear,
  'linear_released': functools.partial(_linear, ahead=0),
}


def _rule(section: Mapping[str, Any]) -> optax.GradientTransformation:
  """Returns the update direction, before the rate."""
  name = section['name']
  if name == 'sgd':
    return optax.trace(decay=section['momentum'])
  if name == 'adagrad':
    return optax.scale_by_rss(
      initial_accumulator_value=0.0, eps=section['eps'] ** 2
    )
  return optax.scale_by_adam(
    b1=section['b1'], b2=section['b2'], eps=section['eps']
  )


def _decay(section: Mapping[str, Any]) -> optax.GradientTransformation:
  """Adds what decays, times its rate; classifiers may have one for the head.

  A high decay of the head alone makes features that transfer better: "Scaling
  Vision Transformers", arXiv:2106.04560, section 3.1.
  """
  rate, everything = section['weight_decay'], section['decay'] == 'all'
  of_head = section.get('head_weight_decay')  # translations have no head

  def decayed(rate, chosen):
    mask = functools.partial(
      _by_name, lambda n: (everything or n[-1] == 'kernel') and chosen(n)
    )
    return optax.add_decayed_weights(rate, mask=mask)

  if of_head is None:
    if everything:
      return optax.add_decayed_weights(rate)
    return decayed(rate, lambda names: True)
  return optax.chain(
    decayed(rate, lambda names: not _is_head(names)), decayed(of_head, _is_head)
  )


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
  """Multiplies the rate of layer l, of layers 0 to n, by decay^(n - l).

  Embeddings are layer 0, block i is layer i + 1, and what follows the blocks
  (final norm, pool, head) is layer n: as BEiT has it (Bao et al. 2021,
  arXiv:2106.08254, appendix). timm counts the final norm to the last block.
  """

  def update(updates, params):
    del params
    depth = sum(name.startswith('block_') for name in updates)
    if stacking.BLOCKS in updates:
      depth = len(jax.tree.leaves(updates[stacking.BLOCKS])[0])

    def scaled(part, x):
      above = 0  # layers
      if part in ('cls', 'patch_embedding', 'positions'):
        above = depth + 1
      elif part == stacking.BLOCKS:
        shape = (depth,) + (1,) * (x.ndim - 1)
        above = jnp.arange(depth, 0, -1).reshape(shape)
      elif part.startswith('block_'):
        above = depth - int(part.removeprefix('block_'))
      return x * decay**above

    return {
      part: jax.tree.map(functools.partial(scaled, part), tree)
      for part, tree in updates.items()
    }

  return optax.stateless(update)


def _is_head(names: list[str]) -> bool:
  return 'head' in names


def _by_name(
  function: Callable[[list[str]], Any], params: PyTree
) -> PyTree[Any]:
  """Returns what `function` says of the names that lead to each leaf."""

  def at(path, leaf):
    del leaf
    # A boxed parameter has its attribute `value` at the end of the path.
    return function(
      [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    )

  return jax.tree_util.tree_map_with_path(at, params)
