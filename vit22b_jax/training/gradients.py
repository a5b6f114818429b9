"""Gradients of a batch: whole or part by part, with or without a loss scale.

found = gradients.of_batch(
  loss_fn, params, batch_stats, batch, count, scale, placed
)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.training import dynamic_scale
from jaxtyping import Array, Bool, Float


class Gradients(NamedTuple):
  """What `of_batch` finds.

  Attributes:
    grads: of the mean loss, like the parameters.
    loss: the mean loss.
    batch_stats: batch norm's running statistics after the batch.
    aux: scalars by name.
    loss_scale: for the next step; None without one.
    overflow: scaled gradients were not finite while the loss was.
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
  batch: Any,
  count: int,
  scale: dynamic_scale.DynamicScale | None,
  placed: Any,
) -> Gradients:
  """Mean gradients over the `count` parts of a batch, one after the other.

  Args:
    loss_fn: (params, batch_stats, part) -> (loss, (batch_stats, aux)).
    params: what to differentiate for.
    batch_stats: batch norm's running statistics.
    batch: the whole batch for count 1, or the parts stacked in front; see
      `parts`.
    count: how many parts.
    scale: dynamic loss scale for float16 (Micikevicius et al. 2018).
    placed: shardings of the parameters. Each part's gradients are split alike
      at once, so that no device holds, or sums, more than its own.
  """

  def one(carry, part):
    batch_stats, scale, grads, loss, finite = carry

    def of_params(params):
      return loss_fn(params, batch_stats, part)

    if scale is None:
      (value, (batch_stats, aux)), new = jax.value_and_grad(
        of_params, has_aux=True
      )(params)
    else:
      scale, ok, (value, (batch_stats, aux)), new = scale.value_and_grad(
        of_params, has_aux=True
      )(params)
      finite &= ok
    new = jax.lax.with_sharding_constraint(new, placed)
    grads = new if grads is None else jax.tree.map(jnp.add, grads, new)
    return (batch_stats, scale, grads, loss + value, finite), aux

  if count == 1:
    carry, aux = one((batch_stats, scale, None, 0.0, jnp.asarray(True)), batch)
  else:
    zeros = jax.lax.with_sharding_constraint(
      jax.tree.map(jnp.zeros_like, params), placed
    )
    carry = (batch_stats, scale, zeros, 0.0, jnp.asarray(True))
    carry, aux = jax.lax.scan(one, carry, batch)
    aux = {k: _whole(k, v) for k, v in aux.items()}
  batch_stats, scale, grads, loss, finite = carry
  grads = jax.tree.map(lambda g: g / count, grads)
  loss = loss / count
  return Gradients(
    grads, loss, batch_stats, aux, scale, ~finite & jnp.isfinite(loss)
  )


def _whole(name: str, values: Float[Array, 'n']) -> Float[Array, '']:
  """A scalar of the batch from those of its parts: their mean or largest."""
  mean = name == 'top1' or 'entropy' in name
  return values.mean(0) if mean else values.max(0)


def parts(images: Array, labels: Array, key: Array, count: int) -> Any:
  """Splits a batch in `count`: (images, labels, keys), each [count, ...].

  Every count-th image goes together, so that devices keep the images they have.
  """
  split = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0),
    (images, labels),
  )
  return *split, jax.random.split(key, count)


def loss_scale(dtype: str) -> dynamic_scale.DynamicScale | None:
  """A dynamic loss scale for float16; None for the other types."""
  if dtype != 'float16':
    return None
  return dynamic_scale.DynamicScale(
    fin_steps=jnp.zeros((), jnp.int32), scale=jnp.float32(2.0**16)
  )
