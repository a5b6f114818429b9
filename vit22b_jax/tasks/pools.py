"""Image pools: earlier fakes that a discriminator is shown again.

    pool = pools.init(50, (256, 256, 3))
    shown, pool = pools.exchange(key, pool, fakes, mesh)  # in the jitted step

A discriminator that sees the newest fakes alone forgets what it learnt of
earlier ones, and the two networks chase each other (Shrivastava et al. 2017,
arXiv:1612.07828, section 2.3). CycleGAN keeps 50 images a domain. The pool is
an array of the training state, so it is saved and resumed with everything else.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vit22b_jax.runtime import sharding


@flax.struct.dataclass
class Pool:
  """Holds images that a generator made.

  Attributes:
    images: float32 in [-1, 1]; rows from `count` on are empty.
    count: how many there are.
  """

  images: Float[Array, 'P H W 3']
  count: Int[Array, '']


def init(size: int, shape: tuple[int, int, int]) -> Pool | None:
  """Makes an empty pool for `size` images; None for a size of 0."""
  if not size:
    return None
  return Pool(jnp.zeros((size, *shape), jnp.float32), jnp.zeros((), jnp.int32))


def _of_rows(height: int, mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of images [N, H, W, 3] by rows.

  Every device then follows the exchange, one image after the other, with its
  own strip of each: nobody holds a whole pool. What they don't divide is whole.
  """
  ways = (sharding.DATA, sharding.FSDP)
  uneven = height % (mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP])
  return NamedSharding(mesh, PartitionSpec(None, None if uneven else ways))


def shardings(pools: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns the shardings of pools: images by rows, counts whole."""
  whole = sharding.replicated(mesh)
  return jax.tree.map(
    lambda x: _of_rows(x.shape[1], mesh) if x.ndim == 4 else whole, pools
  )


def exchange(
  key: PRNGKeyArray,
  pool: Pool | None,
  fakes: Float[Array, 'B H W 3'],
  mesh: jax.sharding.Mesh,
) -> tuple[Float[Array, 'B H W 3'], Pool | None]:
  """Chooses what the discriminator sees in the place of new fakes.

  The images of a batch come one after the other, each as in CycleGAN: while
  the pool isn't full, the image is stored and shown; from then on, with
  probability 0.5, it takes the place of a stored one, which is shown, and else
  it is shown itself and not stored.

  Args:
    key: for this pool and this step.
    pool: None shows the fakes as they are.
    fakes: in [-1, 1].
    mesh: where the batch lives.
  """
  if pool is None:
    return fakes, None
  constrain = jax.lax.with_sharding_constraint
  size = len(pool.images)
  swap_key, row_key = jax.random.split(key)
  swaps = jax.random.bernoulli(swap_key, 0.5, (len(fakes),))
  places = jax.random.randint(row_key, (len(fakes),), 0, size)

  def one(pool, drawn):
    fake, swap, place = drawn
    filling = pool.count < size
    place = jnp.where(filling, pool.count, place)
    stored = pool.images[place]
    shown = jnp.where(swap & ~filling, stored, fake)
    kept = jnp.where(swap | filling, fake, stored)
    count = jnp.minimum(pool.count + 1, size)
    return Pool(pool.images.at[place].set(kept), count), shown

  drawn = constrain(fakes, _of_rows(fakes.shape[1], mesh)), swaps, places
  pool, shown = jax.lax.scan(one, pool, drawn)
  return constrain(shown, sharding.batch_sharding(mesh)), pool
