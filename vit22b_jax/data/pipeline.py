"""Splits -> batches: shuffle, shard by process, gather, prefetch (Grain).

Indices are shuffled and batched, and each batch is gathered at once: from memory
in a background thread, or decoded by threads or worker processes. Batches of a
position are the same for any number of workers, and the union over processes of
the batches of a position is the same for any number of processes.
"""

import functools
import os

import grain
from jaxtyping import Int
from jaxtyping import Shaped
import numpy as np

from vit22b_jax import errors
from vit22b_jax.data import splits

# {'image': uint8 [B, S, S, 3], 'label': int32 [B]}, eval: 'mask' float32 [B].
Batch = dict[str, Shaped[np.ndarray, 'B ...']]

_AHEAD = 4  # Batches gathered ahead by each process.


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
  """Batches of an epoch; the remainder (other images each time) is left out.

  Raises:
    UserError: the split is smaller than a batch.
  """
  if num_examples < global_batch_size:
    raise errors.UserError(
      f'the training split has {num_examples} images, fewer than '
      f'batch_size={global_batch_size}; choose a smaller batch_size.'
    )
  return num_examples // global_batch_size


class BatchIterator(grain.DatasetIterator):
  """Batches of a split from a position on; Grain's checkpoint handlers take it.

  The state is {'next_index': number of batches yielded}: it doesn't depend on
  workers, threads or how far they have read ahead.

  Args:
    split: where records come from.
    batches: indices of each batch (-1 is padding), by position.
    workers: processes that decode a lazy split; 0 uses threads.
    keep_mask: whether batches have a 'mask', or (False) unreadable records are
      replaced with readable ones of the same batch.
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
    self._split = split
    self._batches = batches
    self._workers = workers
    self._keep_mask = keep_mask
    self._position = 0
    self._reader = None

  def __next__(self) -> Batch:
    self._assert_not_closed()
    batch = next(self._started())
    self._position += 1
    index, mask = batch.pop('index'), batch['mask']
    unreadable = (mask == 0) & (index >= 0)
    if unreadable.any():
      self._split.note_unreadable(index[unreadable])
    if self._keep_mask:
      return batch
    del batch['mask']
    return _replace(batch, unreadable) if unreadable.any() else batch

  def get_state(self) -> dict[str, int]:
    """The position: how many batches have been yielded."""
    return {'next_index': self._position}

  def set_state(self, state: dict[str, int]) -> None:
    """Continues from a position of `get_state`."""
    self._stop()
    self._position = int(state['next_index'])

  def start_prefetch(self) -> None:
    """Starts reading ahead before the first batch is asked for."""
    self._started().start_prefetch()

  def close(self) -> None:
    """Stops threads and worker processes."""
    self._stop()
    super().close()

  def _started(self) -> grain.DatasetIterator:
    if self._reader is None:
      self._reader = iter(self._dataset())
    return self._reader

  def _dataset(self) -> grain.IterDataset:
    batches = self._batches[self._position :].map(
      functools.partial(_gather, self._split)
    )
    if isinstance(self._split, splits.ArraySplit):
      threads = 1  # A gather holds the interpreter's lock or is memory-bound.
    else:
      threads = 1 if self._workers else os.cpu_count() or 1
    dataset = batches.to_iter_dataset(
      grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(_AHEAD, threads)
      )
    )
    if self._workers and isinstance(self._split, splits.LazySplit):
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self._workers, per_worker_buffer_size=2
        )
      )
    return dataset

  def _stop(self) -> None:
    if self._reader is not None:
      self._reader.close()
      self._reader = None


def train_iterator(
  split: splits.Split,
  *,
  batch_size: int,
  seed: int,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> BatchIterator:
  """Endless batches, reshuffled every epoch; a function of seed and position.

  An epoch is `steps_per_epoch` batches in which no image comes twice.

  Args:
    split: records to train on.
    batch_size: images of this process's batches.
    seed: of the order.
    workers: processes that decode a lazy split; 0 uses threads.
    process_index: of this process.
    process_count: how many processes share the epoch.

  Raises:
    UserError: the split is smaller than one global batch.
  """
  steps = steps_per_epoch(len(split), batch_size * process_count)
  # Grain shuffles epoch e by seed + e; spread seeds, lest 0 and 1 overlap.
  spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
  order = grain.MapDataset.range(len(split)).shuffle(seed=spread)
  order = order[: steps * batch_size * process_count]
  batches = order[process_index::process_count].batch(batch_size).repeat()
  return BatchIterator(split, batches, workers=workers, keep_mask=False)


def eval_batches(
  split: splits.Split,
  *,
  batch_size: int,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> BatchIterator:
  """Every image once, in order; the last batches are padded.

  Args:
    split: records to evaluate.
    batch_size: images of this process's batches, padding included.
    workers: processes that decode a lazy split; 0 uses threads.
    process_index: of this process.
    process_count: how many processes share the split; each gets equally many
      batches.

  Returns:
    Batches with a 'mask': 1 for an image, 0 for padding and for what can't be
    read.
  """
  size = batch_size * process_count
  padded = -(-len(split) // size) * size
  indices = grain.MapDataset.range(padded).map(
    functools.partial(_or_padding, len(split))
  )
  batches = indices[process_index::process_count].batch(batch_size)
  return BatchIterator(split, batches, workers=workers, keep_mask=True)


def _or_padding(length: int, index: int) -> int:
  return index if index < length else -1


def _gather(split: splits.Split, index: Int[np.ndarray, ' B']) -> Batch:
  batch = split.gather(np.maximum(index, 0))
  mask = batch.pop('readable') & (index >= 0)
  return batch | {'mask': mask.astype(np.float32), 'index': index}


def _replace(batch: Batch, unreadable: Shaped[np.ndarray, ' B']) -> Batch:
  """Readable records of the batch, repeated, in the place of unreadable ones."""
  readable = np.flatnonzero(~unreadable)
  if not len(readable):
    raise errors.UserError('no image of a whole batch could be read.')
  rows = np.arange(len(unreadable))
  rows[unreadable] = np.resize(readable, unreadable.sum())
  return {key: value[rows] for key, value in batch.items()}
