"""Host batches -> the devices of a mesh, some ahead of their use."""

import collections
import itertools
import time

import grain
import jax
import numpy as np
from jaxtyping import Array, Int, Shaped

from vit22b_jax.data import splits

_AHEAD = 2  # Batches sent before they are asked for.


def local_rows(
  sharding: jax.sharding.Sharding, batch_size: int
) -> Int[np.ndarray, ' b']:
  """Returns the rows of a global batch that this process's devices hold.

  Sorted; they need not lie side by side: on a pod a mesh follows the network,
  not the processes. Where a batch isn't split between two processes (their
  devices share the `tensor` axis), both make the same rows.
  """
  held = np.zeros(batch_size, bool)
  for index in sharding.addressable_devices_indices_map((batch_size,)).values():
    held[index] = True
  return np.flatnonzero(held)


def place(
  batch: splits.Batch, sharding: jax.sharding.Sharding
) -> dict[str, Shaped[Array, 'G ...']]:
  """Puts the `local_rows` of a global batch of G images on the devices."""
  return {
    key: jax.make_array_from_process_local_data(sharding, value)
    for key, value in batch.items()
  }


class DeviceIterator(grain.DatasetIterator):
  """Batches on the devices, sent some before they are asked for.

  Its state counts the batches that were yielded, not those sent ahead;
  `seconds_waited` is the time spent in `next`, in all.
  """

  def __init__(
    self, iterator: grain.DatasetIterator, sharding: jax.sharding.Sharding
  ):
    super().__init__(iterator)
    self._sharding = sharding
    self._sent = collections.deque()
    self._state = iterator.get_state()
    self.seconds_waited = 0.0

  def __next__(self) -> dict[str, Shaped[Array, 'G ...']]:
    start = time.perf_counter()
    for batch in itertools.islice(self._parent, _AHEAD - len(self._sent)):
      placed = place(batch, self._sharding)
      self._sent.append((placed, self._parent.get_state()))
    if not self._sent:
      raise StopIteration
    batch, self._state = self._sent.popleft()
    self.seconds_waited += time.perf_counter() - start
    return batch

  def get_state(self) -> dict[str, int]:
    return dict(self._state)

  def set_state(self, state: dict[str, int]) -> None:
    self._sent.clear()
    self._parent.set_state(state)
    self._state = dict(state)
