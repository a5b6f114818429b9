"""Host batches -> arrays on the devices, one batch ahead of the step.

batches = device.Prefetch(iterator, sharding)
batch = next(batches)        # on the devices already, or waited for
batches.get_state()          # position after the batches handed out
"""

import time
from typing import Any

import grain
import jax
from jaxtyping import Array, Shaped

from vit22b_jax.data import pipeline


def place(
  batch: pipeline.Batch, sharding: jax.sharding.Sharding
) -> dict[str, Shaped[Array, 'B ...']]:
  """The global batch, of which each process gives its own part."""
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


class Prefetch(grain.DatasetIterator):
  """Puts the next batch on the devices while the current one is used.

  Its state is that of the batches handed out, not of those read ahead, so a
  run resumed from it sees the batch that would have come next.

  Args:
    iterator: batches on the host.
    sharding: how the batch axis is split over the devices.

  Attributes:
    seconds_waited: time spent waiting for the host's data, so far.
  """

  def __init__(
    self, iterator: grain.DatasetIterator, sharding: jax.sharding.Sharding
  ):
    super().__init__()
    self.seconds_waited = 0.0
    self._iterator = iterator
    self._sharding = sharding
    self._ahead: tuple[Any, Any] | None = None
    self._state = iterator.get_state()

  def __next__(self) -> dict[str, Shaped[Array, 'B ...']]:
    batch, self._state = self._ahead or self._read()
    self._ahead = self._read()
    return batch

  def get_state(self) -> Any:
    return self._state

  def set_state(self, state: Any) -> None:
    self._iterator.set_state(state)
    self._state = state
    self._ahead = None

  def close(self) -> None:
    self._iterator.close()
    super().close()

  def _read(self) -> tuple[dict[str, Shaped[Array, 'B ...']], Any]:
    start = time.monotonic()
    batch = next(self._iterator)
    self.seconds_waited += time.monotonic() - start
    return place(batch, self._sharding), self._iterator.get_state()
