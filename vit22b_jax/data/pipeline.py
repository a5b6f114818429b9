"""Splits -> batches: shuffle, shard, gather, prefetch (Grain), place.

Indices are shuffled and batched, and each batch is gathered at once: from
memory, where that is quick, or decoded by threads or worker processes. The
batch of a position is the same for any number of workers and processes: each
process makes the rows of it that its own devices hold (`local_rows`). So a
position is all that a run needs to resume.
"""

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, Shaped

from vit22b_jax import errors
from vit22b_jax.data import catalog, splits

# Indices of a batch's records and where to crop them.
_Choice = tuple[Int[np.ndarray, ' B'], Float[np.ndarray, 'B 2'] | None]
# {'image', 'label'}, or {'a', 'b'} with images of two domains.
Batches = Generator[dict[str, Shaped[np.ndarray, 'B ...']], None, None]

_AHEAD = 4  # Batches gathered ahead by each process.
_MAX_THREADS = 16  # Each holds a batch.
_SENT = 2  # Batches sent to the devices before they are asked for.


def steps_per_epoch(split: splits.Split, batch_size: int) -> int:
  """Counts the batches of an epoch; other images each time are left over.

  Raises:
    UserError: the split is smaller than a batch.
  """
  if len(split) < batch_size:
    raise errors.UserError(
      f'the training split has {len(split)} images, fewer than '
      f'batch_size={batch_size}; choose a smaller batch_size.'
    )
  return len(split) // batch_size


def train_iterator(
  split: splits.Split,
  *,
  batch_size: int,
  seed: int,
  sampling: str = 'shuffle',
  workers: int = 0,
  rows: Int[np.ndarray, ' b'] | None = None,
  start: int = 0,
) -> Batches:
  """Returns endless batches, reshuffled every epoch.

  A batch is a function of seed and position. An epoch is `steps_per_epoch`
  batches in which no image comes twice or, `balanced`, in which all classes
  come equally often: images of rare ones again and again.

  Args:
    split: records to train on.
    batch_size: images of a step, over all processes.
    seed: of the order.
    sampling: 'shuffle' or 'balanced'.
    workers: processes that decode a lazy split; 0 uses threads.
    rows: of each batch, that this process makes; all by default.
    start: position of the first batch.

  Raises:
    UserError: the split is smaller than one batch, or can't be balanced.
  """
  steps, size = steps_per_epoch(split, batch_size), batch_size
  share = slice(None) if rows is None else rows
  labels = None
  if sampling == 'balanced':
    if split.labels.ndim > 1:
      raise errors.UserError(
        "data.sampling='balanced' needs images of one class each, but these "
        "may be of several: use 'shuffle'."
      )
    labels = split.labels.tobytes()

  def choose(position: int) -> _Choice:
    epoch, step = divmod(position, steps)
    order = _order(len(split), seed, epoch, labels)
    # A third number, so that no crop is drawn from the order's own stream.
    draws = np.random.default_rng((seed, position, 1)).random((size, 2))
    return order[step * size : (step + 1) * size][share], draws[share]

  positions = grain.MapDataset.range(start, sys.maxsize)
  return _read(split, positions, choose, workers)


def eval_batches(
  split: splits.Split,
  *,
  batch_size: int,
  workers: int = 0,
  rows: Int[np.ndarray, ' b'] | None = None,
) -> Batches:
  """Returns every image once, in order; the last batches are padded.

  Takes the arguments of `train_iterator`. Batches have a 'mask', 1 for an image
  and 0 for padding and for what can't be read; and an 'index', each image's
  place in the split.
  """
  length = len(split)
  share = np.arange(batch_size) if rows is None else rows

  def choose(position: int) -> _Choice:
    index = position * batch_size + share
    return np.where(index < length, index, -1), None

  positions = grain.MapDataset.range(-(-length // batch_size))
  return _read(split, positions, choose, workers, masked=True)


def pair_steps_per_epoch(
  pair: catalog.Pair, batch_size: int, pairing: str
) -> int:
  """Counts the batches of an epoch: of the larger domain, or of the pairs."""
  steps = [steps_per_epoch(split, batch_size) for split in (pair.a, pair.b)]
  return max(steps) if pairing == 'unpaired' else min(steps)


def pair_iterator(
  pair: catalog.Pair, *, seed: int, pairing: str = 'unpaired', **options
) -> Batches:
  """Returns endless {'a', 'b'} batches; a function of seed and position.

  Each domain goes through its own permutations: `unpaired`, the smaller starts
  over (in a new order) while the larger is on its way; otherwise image i of one
  always comes with image i of the other, and the rest of the larger never.

  `options` are those of `train_iterator`, for each domain.

  Raises:
    UserError: a domain is smaller than a batch.
  """
  a, b = pair.a, pair.b
  seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
  if pairing != 'unpaired':
    both = np.arange(min(len(a), len(b)))
    a, b, seeds = a.subset(both), b.subset(both), [seeds[0]] * 2
  return _zipped(
    train_iterator(a, seed=seeds[0], **options),
    train_iterator(b, seed=seeds[1], **options),
  )


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


class DeviceIterator:
  """Training batches on the devices, some sent before they are asked for.

  The state is {'next_index': number of batches yielded}: it doesn't depend on
  workers, threads or how many were sent ahead. `seconds_waited` is the time
  spent in `next`, in all.

  Args:
    read: (position) -> this process's rows of the batches from there on.
    sharding: of a batch.
  """

  def __init__(
    self, read: Callable[[int], Batches], sharding: jax.sharding.Sharding
  ):
    self._read, self._sharding = read, sharding
    self._position, self._host = 0, read(0)
    self._sent = collections.deque()
    self.seconds_waited = 0.0

  def __iter__(self) -> 'DeviceIterator':
    return self

  def __next__(self) -> dict[str, Shaped[Array, 'G ...']]:
    start = time.perf_counter()
    for batch in itertools.islice(self._host, _SENT - len(self._sent)):
      self._sent.append(place(batch, self._sharding))
    if not self._sent:
      raise StopIteration
    self._position += 1
    self.seconds_waited += time.perf_counter() - start
    return self._sent.popleft()

  def get_state(self) -> dict[str, int]:
    return {'next_index': self._position}

  def set_state(self, state: dict[str, int]) -> None:
    self.close()
    self._position = int(state['next_index'])
    self._host = self._read(self._position)

  def close(self) -> None:
    """Ends threads and worker processes."""
    self._host.close()
    self._sent.clear()


# Not `MapDataset.shuffle`: it draws other orders, and runs resume in theirs.
# Threads cross from one epoch to the next, in each of two domains.
@functools.lru_cache(maxsize=4)
def _order(
  length: int, seed: int, epoch: int, labels: bytes | None
) -> Int[np.ndarray, ' N']:
  """Returns the rows of an epoch; given int32 labels, of each equally many."""
  rng = np.random.default_rng((seed, epoch))
  if labels is None:
    return rng.permutation(length)
  _, classes = np.unique(np.frombuffer(labels, np.int32), return_inverse=True)
  rows = [np.flatnonzero(classes == c) for c in range(classes.max() + 1)]
  more = rng.permutation(len(rows)) < length % len(rows)
  drawn = []
  for members, count in zip(rows, length // len(rows) + more, strict=True):
    passes = [
      rng.permutation(members) for _ in range(-(-count // len(members)))
    ]
    drawn.append(np.concatenate(passes)[:count])
  return rng.permutation(np.concatenate(drawn))


def _read(
  split: splits.Split,
  positions: grain.MapDataset,
  choose: Callable[[int], _Choice],
  workers: int,
  masked: bool = False,
) -> Batches:
  """Yields the batch that `choose` makes of each position (-1 is padding).

  A lazy split is decoded by so many processes (`workers`; 0 uses threads);
  closing the generator ends them. `masked` adds 'mask' and 'index'.
  """

  def gather(position: int) -> splits.Batch:
    index, draws = choose(position)
    return split.gather(np.maximum(index, 0), draws) | {'index': index}

  reader = iter(_dataset(split, positions.map(gather), workers))
  with contextlib.closing(reader):
    for batch in reader:
      index = batch.pop('index')
      split.validate_batch(np.maximum(index, 0), batch)
      readable = batch.pop('readable')
      if masked:
        mask = (readable & (index >= 0)).astype(np.float32)
        batch |= {'mask': mask, 'index': index}
      yield batch


def _dataset(
  split: splits.Split, batches: grain.MapDataset, workers: int
) -> grain.IterDataset:
  """Has batches gathered ahead, by whatever suits the split."""
  if isinstance(split, splits.ArraySplit):
    workers = 0
  threads = 0  # Handing over from a thread costs more than a gather.
  if split.decodes:
    threads = 1 if workers else min(os.cpu_count() or 1, _MAX_THREADS)
  dataset = batches.to_iter_dataset(
    grain.ReadOptions(
      num_threads=threads,
      prefetch_buffer_size=threads and max(_AHEAD, threads),
    )
  )
  if not workers:
    return dataset
  if not flags.FLAGS.is_parsed():
    # Grain hands flags to its workers; outside absl.app nobody parses any.
    flags.FLAGS.mark_as_parsed()
  options = grain.MultiprocessingOptions(
    num_workers=workers, per_worker_buffer_size=2
  )
  return dataset.mp_prefetch(options, worker_init_fn=_follow_main_process)


def _zipped(a: Batches, b: Batches) -> Batches:
  """Yields the images of both domains."""
  with contextlib.closing(a), contextlib.closing(b):
    for one, other in zip(a, b, strict=True):
      yield {'a': one['image'], 'b': other['image']}


def _follow_main_process(index: int, count: int) -> None:
  """Leaves signals to the main process, which still needs it; ends with it."""
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(0)

  threading.Thread(target=follow, daemon=True).start()
