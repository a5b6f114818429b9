"""Splits -> host batches: shuffle, shard, gather, prefetch (Grain).

Indices are shuffled and batched, and each batch is gathered at once: from
memory, where that is quick, or decoded by threads or worker processes. The
batch of a position is the same for any number of workers and processes: each
process makes the rows of it that its own devices hold (`devices.local_rows`).
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8

from vit22b_jax import errors
from vit22b_jax.data import catalog, splits

# Indices of a batch's records and where to crop them.
_Choice = tuple[Int[np.ndarray, ' B'], Float[np.ndarray, 'B 2'] | None]

_AHEAD = 4  # Batches gathered ahead by each process.
_MAX_THREADS = 16  # Each holds a batch.


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


class BatchIterator(grain.DatasetIterator):
  """Yields batches of a split; Grain's checkpoint handlers take it.

  The state is {'next_index': number of batches yielded}: it doesn't depend on
  workers, threads or how far they have read ahead. `batches` are what to gather
  by position (-1 is padding); a lazy split is decoded by so many processes
  (`workers`; 0 uses threads), and `keep_mask` adds 'mask' and 'index'.
  """

  def __init__(
    self,
    split: splits.Split,
    batches: grain.MapDataset,
    *,
    workers: int,
    keep_mask: bool,
  ):
    super().__init__()
    self._split, self._batches = split, batches
    self._workers, self._keep_mask = workers, keep_mask
    self._position = 0
    self._reader = None

  def __next__(self) -> splits.Batch:
    self._assert_not_closed()
    if self._reader is None:
      self._reader = iter(self._dataset())
    try:
      batch = next(self._reader)
    except StopIteration:
      self._stop()
      raise
    self._position += 1
    index = batch.pop('index')
    self._split.validate_batch(np.maximum(index, 0), batch)
    readable = batch.pop('readable')
    if self._keep_mask:
      mask = (readable & (index >= 0)).astype(np.float32)
      batch |= {'mask': mask, 'index': index}
    return batch

  def get_state(self) -> dict[str, int]:
    return {'next_index': self._position}

  def set_state(self, state: dict[str, int]) -> None:
    self._stop()
    self._position = int(state['next_index'])

  def close(self) -> None:
    """Stops threads and worker processes."""
    self._stop()
    super().close()

  def _dataset(self) -> grain.IterDataset:
    batches = self._batches[self._position :].map(
      functools.partial(_gather, self._split)
    )
    in_memory = isinstance(self._split, splits.ArraySplit)
    workers = 0 if in_memory else self._workers
    threads = 0  # Handing over from a thread costs more than a gather.
    if self._split.decodes:
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

  def _stop(self) -> None:
    if self._reader is not None:
      self._reader.close()
      self._reader = None


def train_iterator(
  split: splits.Split,
  *,
  batch_size: int,
  seed: int,
  sampling: str = 'shuffle',
  workers: int = 0,
  rows: Int[np.ndarray, ' b'] | None = None,
) -> BatchIterator:
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

  return BatchIterator(
    split,
    grain.MapDataset.range(sys.maxsize).map(choose),
    workers=workers,
    keep_mask=False,
  )


def eval_batches(
  split: splits.Split,
  *,
  batch_size: int,
  workers: int = 0,
  rows: Int[np.ndarray, ' b'] | None = None,
) -> BatchIterator:
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

  return BatchIterator(
    split,
    grain.MapDataset.range(-(-length // batch_size)).map(choose),
    workers=workers,
    keep_mask=True,
  )


def pair_steps_per_epoch(
  pair: catalog.Pair, batch_size: int, pairing: str
) -> int:
  """Counts the batches of an epoch: of the larger domain, or of the pairs."""
  steps = [steps_per_epoch(split, batch_size) for split in (pair.a, pair.b)]
  return max(steps) if pairing == 'unpaired' else min(steps)


def pair_iterator(
  pair: catalog.Pair, *, seed: int, pairing: str = 'unpaired', **options
) -> 'PairIterator':
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
  return PairIterator(
    train_iterator(a, seed=seeds[0], **options),
    train_iterator(b, seed=seeds[1], **options),
  )


class PairIterator(grain.DatasetIterator):
  """Yields {'a', 'b'}; the state is that of either BatchIterator."""

  def __init__(self, a: BatchIterator, b: BatchIterator):
    super().__init__((a, b))

  def __next__(self) -> dict[str, UInt8[np.ndarray, 'B H W 3']]:
    self._assert_not_closed()
    a, b = self._parents
    return {'a': next(a)['image'], 'b': next(b)['image']}

  def get_state(self) -> dict[str, int]:
    return self._parents[0].get_state()

  def set_state(self, state: dict[str, int]) -> None:
    for domain in self._parents:
      domain.set_state(state)


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


def _gather(split: splits.Split, choice: _Choice) -> splits.Batch:
  index, draws = choice
  return split.gather(np.maximum(index, 0), draws) | {'index': index}


def _follow_main_process(index: int, count: int) -> None:
  """Leaves signals to the main process, which still needs it; ends with it."""
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(0)

  threading.Thread(target=follow, daemon=True).start()
