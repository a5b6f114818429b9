"""Image pools against CycleGAN's own, written out on the host."""

import jax
import jax.numpy as jnp
import numpy as np

from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import pools


@jax.jit
def exchange(key, pool, fakes):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return pools.exchange(key, pool, fakes, mesh)


def numbered(first, count):
  """Images 1 x 1 x 3 whose pixels are their number."""
  numbers = np.arange(first, first + count, dtype=np.float32)
  return jnp.asarray(
    np.broadcast_to(numbers[:, None, None, None], (count, 1, 1, 3))
  )


def run(size, batch, steps, seed=0):
  """Numbers shown, of `steps` batches of new images; and the last pool."""
  pool, shown = pools.init(size, (1, 1, 3)), []
  for step in range(steps):
    key = jax.random.fold_in(jax.random.key(seed), step)
    images, pool = exchange(key, pool, numbered(1 + step * batch, batch))
    shown.append(np.asarray(images[:, 0, 0, 0]))
  return np.concatenate(shown), pool


def test_fills_up_first_and_shows_what_comes():
  shown, pool = run(size=7, batch=3, steps=2)
  np.testing.assert_array_equal(shown, np.arange(1, 7))
  np.testing.assert_array_equal(pool.images[:, 0, 0, 0], [1, 2, 3, 4, 5, 6, 0])
  assert pool.count == 6


def test_a_batch_may_fill_the_pool_in_its_middle():
  shown, pool = run(size=2, batch=5, steps=1)
  np.testing.assert_array_equal(shown[:2], [1, 2])
  assert pool.count == 2
  # Nothing is lost or doubled: an image was shown or is stored.
  everything = np.concatenate([shown, pool.images[:, 0, 0, 0]])
  assert set(everything) == {1, 2, 3, 4, 5}


def test_an_exchanged_image_leaves_the_pool_and_a_new_one_takes_its_place():
  size, steps = 5, 400
  shown, pool = run(size, batch=1, steps=steps)
  stored = list(range(1, size + 1))
  for new, old in enumerate(shown[size:], size + 1):
    if old != new:  # CycleGAN: return a stored one, and store this one
      assert old in stored
      stored[stored.index(old)] = new
  np.testing.assert_array_equal(pool.images[:, 0, 0, 0], stored)


def test_half_of_the_images_are_exchanged_for_any_of_the_stored():
  size, steps = 5, 600
  shown, _ = run(size, batch=4, steps=steps)
  new = np.arange(1, 4 * steps + 1)
  old = (shown != new)[size:]
  assert abs(old.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(old))
  # A stored image waits for about 2 * size others: geometric, mean 10.
  ages = (new - shown)[size:][old]
  assert abs(ages[ages > 0].mean() - 2 * size) < 1


def test_images_of_a_batch_may_meet_the_same_row():
  """With one row, the image of a batch is exchanged for the one before it."""
  shown, pool = run(size=1, batch=50, steps=1)
  stored = 1.0
  for new, old in enumerate(shown[1:], 2):
    assert old in (new, stored)
    stored = new if old == stored else stored
  assert pool.images[0, 0, 0, 0] == stored


def test_no_pool_shows_the_new_ones():
  assert pools.init(0, (1, 1, 3)) is None
  images = numbered(1, 3)
  shown, pool = exchange(jax.random.key(0), None, images)
  np.testing.assert_array_equal(shown, images)
  assert pool is None
