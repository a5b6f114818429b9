"""Both updates of a CycleGAN's step, out of one set of generator passes.

    done = updates.both(state, networks, tx, real, key, first='generators',
                        mesh=mesh)

The fakes of a step are those of the generators before it, whoever is stepped
first: so they are made once, judged by the discriminators for both losses, and
pulled back to the generators' weights once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training import dynamic_scale
from jaxtyping import Array, Bool, PRNGKeyArray

from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import cyclegan, pools

FIRST = ('generators', 'discriminators')


class Updates(NamedTuple):
  """What `both` finds.

  Attributes:
    made: all images of the generators.
    grads: by network, before clipping.
    updates: what the optimisers add to the parameters, by network.
    opt_state: of `generators` and `discriminators`, afterwards.
    pools: of the domains, afterwards.
    seen: the terms of the losses by name, `loss` (their weighted sum) and
      `max_score`, the largest absolute score.
  """

  made: cyclegan.Images
  grads: dict[str, Any]
  updates: dict[str, Any]
  opt_state: dict[str, Any]
  pools: dict[str, pools.Pool | None]
  seen: cyclegan.Scalars


def both(
  state: Any,
  networks: cyclegan.Networks,
  tx: optax.GradientTransformation,
  real: cyclegan.Images,
  key: PRNGKeyArray,
  *,
  first: str,
  mesh: jax.sharding.Mesh,
) -> Updates:
  """Gradients and updates of generators and discriminators.

  The pools' images and the fakes are constants to the discriminators; the
  discriminators are constants to the generators: as they were before the step
  or, stepped first, after it.

  Args:
    state: a `translation.State` before the step.
    networks: the modules and losses.
    tx: the rule of both optimisers.
    real: batches `a` and `b` in [-1, 1].
    key: of dropout and the pools.
    first: one of FIRST.
    mesh: where the batch lives.
  """
  opt_state = {}
  gens = pick(state.params, cyclegan.GENERATORS)
  discs = pick(state.params, cyclegan.DISCRIMINATORS)
  scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

  def scaled(loss_fn):
    """Gradients of scale x loss, by the first argument, and what was seen."""

    def call(*args):
      loss, seen = loss_fn(*args)
      return scale * loss, seen | {'loss': loss}

    return jax.grad(call, has_aux=True)

  def unscaled(grads):
    return jax.tree.map(lambda g: g / scale, grads)

  dropout_key, pool_key = jax.random.split(key)
  made, pull_back = jax.vjp(
    lambda params: networks.generate(params, real, dropout_key), gens
  )
  shown, new_pools = _exchange(pool_key, state.pools, made, mesh)
  disc_grads, disc_seen = scaled(networks.discriminator_loss)(
    discs, real, shown
  )
  disc_grads = unscaled(disc_grads)
  disc_updates, opt_state['discriminators'] = tx.update(
    disc_grads, state.opt_state['discriminators'], discs
  )
  if first == 'discriminators':
    finite = all_finite(disc_grads)  # or else the step isn't taken
    discs = jax.tree.map(
      lambda p, u: jnp.where(finite, p + u, p), discs, disc_updates
    )
  cotangents, gen_seen = scaled(networks.generator_loss)(made, discs, real)
  gen_grads = unscaled(pull_back(cotangents)[0])
  gen_updates, opt_state['generators'] = tx.update(
    gen_grads, state.opt_state['generators'], gens
  )
  seen = disc_seen | gen_seen
  seen['loss'] = gen_seen['loss'] + disc_seen['loss']
  seen['max_score'] = jnp.maximum(gen_seen['max_score'], disc_seen['max_score'])
  return Updates(
    made,
    gen_grads | disc_grads,
    gen_updates | disc_updates,
    opt_state,
    new_pools,
    seen,
  )


def _exchange(
  key: PRNGKeyArray,
  old: dict[str, pools.Pool | None],
  made: cyclegan.Images,
  mesh: jax.sharding.Mesh,
) -> tuple[cyclegan.Images, dict[str, pools.Pool | None]]:
  """What each discriminator is shown as fakes, and the pools after that."""
  shown, new = {}, {}
  for k, domain in zip(jax.random.split(key), 'ab', strict=True):
    fakes, pool = made[f'fake_{domain}'], old[domain]
    if pool is not None:
      # One image after the other: each device does it for the whole batch, with
      # the rows of the images that it has of the pool.
      rows = pools.of_rows(fakes.shape[1], mesh)
      fakes = jax.lax.with_sharding_constraint(fakes, rows)
      fakes, pool = pools.exchange(k, pool, fakes)
      fakes = jax.lax.with_sharding_constraint(
        fakes, sharding.batch_sharding(mesh)
      )
    shown[domain], new[domain] = fakes, pool
  return shown, new


def rescaled(
  scale: dynamic_scale.DynamicScale, finite: Bool[Array, '']
) -> dynamic_scale.DynamicScale:
  """The loss scale for the next step, as flax's own `value_and_grad` sets it.

  Ours has two losses to scale, and one backward pass in two parts.
  """
  grow = finite & (scale.fin_steps == scale.growth_interval)
  largest = jnp.finfo(jnp.float32).max
  grown = jnp.minimum(scale.scale * scale.growth_factor, largest)
  shrunk = scale.scale * scale.backoff_factor
  return scale.replace(
    fin_steps=jnp.where(finite & ~grow, scale.fin_steps + 1, 0),
    scale=jnp.where(grow, grown, jnp.where(finite, scale.scale, shrunk)),
  )


def pick(tree: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
  """The entries of these names."""
  return {name: tree[name] for name in names}


def all_finite(tree: Any) -> Bool[Array, '']:
  """Whether no array has a NaN or an infinity."""
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
  )
