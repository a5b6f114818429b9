"""Computes a batch's gradients: whole or in parts, with or without loss scale.

parts = gradients.split(images, labels, key, count)
found = gradients.of_batch(loss_fn, params, batch_stats, parts, count, ...)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.training import dynamic_scale
from jaxtyping import Array, Bool, Float, PRNGKeyArray


class Gradients(NamedTuple):
  """Holds what `of_batch` computes, of the mean loss.

  `overflow`: scaled gradients were not finite while the loss was.
  """

  grads: Any
  loss: Float[Array, '']
  batch_stats: Any
  aux: dict[str, Array]
  loss_scale: dynamic_scale.DynamicScale | None
  overflow: Bool[Array, '']


def of_batch(
  loss_fn: Callable[..., Any],
  params: Any,
  batch_stats: Any,
  parts: Any,
  count: int,
  scale: dynamic_scale.DynamicScale | None,
  shardings: Any,
) -> Gradients:
  """Computes mean gradients over `count` parts of a batch, one after the other.

  Args:
    loss_fn: (params, batch_stats, part) -> (loss, (batch_stats, aux)).
    batch_stats: batch norm's running statistics.
    parts: `count` of them, as `split` gives them.
    scale: dynamic loss scale for float16 (Micikevicius et al. 2018).
    shardings: of the parameters. Each part's gradients are split like them at
      once, so that no device holds, or sums, more than its own.
  """

  def one(carry, part):
    batch_stats, scale, grads, loss, finite = carry
    args = params, batch_stats, part
    if scale is None:
      found, new = jax.value_and_grad(loss_fn, has_aux=True)(*args)
    else:
      scale, ok, found, new = scale.value_and_grad(loss_fn, has_aux=True)(*args)
      finite &= ok
    value, (batch_stats, aux) = found
    new = jax.lax.with_sharding_constraint(new, shardings)
    grads = new if grads is None else jax.tree.map(jnp.add, grads, new)
    return (batch_stats, scale, grads, loss + value, finite), aux

  carry = (batch_stats, scale, None, 0.0, jnp.asarray(True))
  if count == 1:
    carry, aux = one(carry, parts)
  else:
    zeros = jax.lax.with_sharding_constraint(
      jax.tree.map(jnp.zeros_like, params), shardings
    )
    carry = (*carry[:2], zeros, *carry[3:])
    carry, aux = jax.lax.scan(one, carry, parts)
    aux = {name: _of_parts(name, values) for name, values in aux.items()}
  batch_stats, scale, grads, loss, finite = carry
  grads = jax.tree.map(lambda g: g / count, grads)
  overflow = ~finite & jnp.isfinite(loss)
  return Gradients(grads, loss / count, batch_stats, aux, scale, overflow)


def _of_parts(name: str, values: Float[Array, 'count']) -> Float[Array, '']:
  """Returns a scalar of a batch from those of its parts."""
  if name.startswith('residual_rms'):
    return jnp.sqrt(jnp.square(values).mean())
  is_mean = name.startswith('train/') or 'entropy' in name
  return values.mean() if is_mean else values.max()


def split(images: Array, labels: Array, key: PRNGKeyArray, count: int) -> Any:
  """Splits a batch in `count`: (images, labels, keys), each [count, ...].

  Every count-th image goes together, so that devices keep the images they have.
  One part is the batch itself, without an axis in front.
  """
  if count == 1:
    return images, labels, key
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0),
    (images, labels),
  )
  return *parts, jax.random.split(key, count)


def loss_scale(dtype: str) -> dynamic_scale.DynamicScale | None:
  """Returns a dynamic loss scale for float16; None for the other types."""
  if dtype != 'float16':
    return None
  return dynamic_scale.DynamicScale(
    fin_steps=jnp.zeros((), jnp.int32), scale=jnp.float32(2.0**16)
  )


def next_loss_scale(
  scale: dynamic_scale.DynamicScale, finite: Bool[Array, '']
) -> dynamic_scale.DynamicScale:
  """Returns the scale for the next step, as flax's `value_and_grad` sets it.

  For steps that scale several losses, whose backward passes flax's own method
  can't hold.
  """
  grow = finite & (scale.fin_steps == scale.growth_interval)
  largest = jnp.finfo(jnp.float32).max
  grown = jnp.minimum(scale.scale * scale.growth_factor, largest)
  shrunk = scale.scale * scale.backoff_factor
  return scale.replace(
    fin_steps=jnp.where(finite & ~grow, scale.fin_steps + 1, 0),
    scale=jnp.where(grow, grown, jnp.where(finite, scale.scale, shrunk)),
  )


def all_finite(tree: Any) -> Bool[Array, '']:
  """Returns whether no array of a tree has a NaN or an infinity."""
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
  )
