"""Tests of batches: order, sharding by process, resuming, padding, devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.helpers import data_fixtures
from vit22b_jax import errors
from vit22b_jax.data import loader, pipeline, splits


def _numbered(count):
  """A split in memory whose labels are the numbers of its records."""
  images = np.zeros((count, 2, 2, 3), np.uint8)
  images[:, 0, 0, 0] = np.arange(count) % 256
  return splits.ArraySplit(images, np.arange(count, dtype=np.int32))


def _train(count, batch_size, steps, **options):
  """Labels of the first batches: [steps, B]."""
  iterator = pipeline.train_iterator(
    _numbered(count), batch_size=batch_size, **({'seed': 0} | options)
  )
  labels = np.stack([next(iterator)['label'] for _ in range(steps)])
  iterator.close()
  return labels


@pytest.fixture(scope='module')
def lazy(tmp_path_factory):
  """A split decoded while reading, and the same in memory."""
  root = data_fixtures.make_folder(
    tmp_path_factory.mktemp('folder'), counts={'train': 13, 'val': 1}
  )
  options = {'image_size': 8}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('VIT22B_JAX_CACHE', str(root / 'cache'))
    memory = loader.load_classes(f'folder:{root}', **options)
    lazy = loader.load_classes(f'folder:{root}', **options, cache_max_gb=0)
  assert isinstance(lazy.train, splits.LazySplit)
  return lazy.train, memory.train


# Training order.


def test_an_epoch_holds_every_index_once():
  labels = _train(21, 7, 6).reshape(2, 21)
  for epoch in labels:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(21))
  assert not np.array_equal(*labels)
  assert not np.array_equal(labels[0], np.arange(21))


def test_the_remainder_is_left_out_and_differs_between_epochs():
  labels = _train(23, 5, 8).reshape(2, 20)
  assert all(len(set(epoch)) == 20 for epoch in labels)
  left_out = [set(range(23)) - set(epoch) for epoch in labels]
  assert left_out[0] != left_out[1]


def test_images_stay_with_their_labels():
  iterator = pipeline.train_iterator(_numbered(50), batch_size=8, seed=0)
  for _ in range(10):
    batch = next(iterator)
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['label'])
  assert set(batch) == {'image', 'label'}
  assert batch['image'].dtype == np.uint8
  assert batch['label'].dtype == np.int32


def test_order_follows_the_seed():
  np.testing.assert_array_equal(_train(40, 8, 9), _train(40, 8, 9))
  one, two = (_train(40, 8, 10, seed=seed).reshape(2, 40) for seed in (0, 1))
  # No epoch of one seed is an epoch of the next.
  assert not any(np.array_equal(a, b) for a in one for b in two)


@pytest.mark.parametrize('count', [24, 29])
def test_processes_partition_the_batches_of_one(count):
  whole = _train(count, 6, 9)
  for rows in ([0, 1], [2, 5], [3, 4]):  # not side by side on every machine
    part = _train(count, 6, 9, rows=np.array(rows))
    np.testing.assert_array_equal(part, whole[:, rows])


def test_local_rows_are_what_local_devices_hold():
  """Devices of one process, in the order of a mesh that follows a network."""

  class Local:
    def __init__(self, *slices):
      self._slices = slices

    def addressable_devices_indices_map(self, shape):
      assert shape == (12,)
      return dict(enumerate((slice(*x),) for x in self._slices))

  found = pipeline.local_rows(Local((9, 12), (3, 6), (9, 12)), 12)
  np.testing.assert_array_equal(found, [3, 4, 5, 9, 10, 11])
  np.testing.assert_array_equal(
    pipeline.local_rows(_sharding(), 16), np.arange(16)
  )


def test_steps_per_epoch():
  assert pipeline.steps_per_epoch(_numbered(23), 5) == 4
  with pytest.raises(errors.UserError, match=r'23 images.*batch_size=24'):
    pipeline.steps_per_epoch(_numbered(23), 24)
  with pytest.raises(errors.UserError, match='batch_size=24'):
    pipeline.train_iterator(
      _numbered(23), batch_size=24, seed=0, rows=np.arange(12)
    )


# Balanced classes.

_SKEWED = np.repeat([2, 5, 9], [29, 11, 3]).astype(np.int32)


def _balanced(steps, labels=_SKEWED, **options):
  """Rows of the first batches of 8: [steps, B]."""
  images = np.zeros((len(labels), 2, 2, 3), np.uint8)
  images[:, 0, 0, 0] = np.arange(len(labels))
  iterator = pipeline.train_iterator(
    splits.ArraySplit(images, labels),
    batch_size=8,
    sampling='balanced',
    **({'seed': 0} | options),
  )
  rows = [next(iterator)['image'][:, 0, 0, 0] for _ in range(steps)]
  iterator.close()
  return np.stack(rows)


def test_balanced_classes_come_equally_often():
  epochs = _balanced(10).reshape(2, 40)  # 43 rows are drawn, 40 taken
  for rows in epochs:
    _, counts = np.unique(_SKEWED[rows], return_counts=True)
    assert counts.sum() == 40
    assert counts.min() >= 11 and counts.max() <= 15
    rows, counts = np.unique(rows, return_counts=True)
    # The common class without repetition, the rare ones evenly.
    assert set(counts[rows < 29]) == {1}
    assert counts[rows >= 40].min() >= 3
  assert not np.array_equal(*epochs)
  seen = np.unique(_balanced(100))  # in time, everything
  np.testing.assert_array_equal(seen, np.arange(43))


def test_balanced_order_is_a_function_of_seed_and_position():
  whole = _balanced(12)
  np.testing.assert_array_equal(_balanced(12), whole)
  assert not np.array_equal(_balanced(12, seed=1), whole)
  for rows in ([0, 5], [3]):
    part = _balanced(12, rows=np.array(rows))
    np.testing.assert_array_equal(part, whole[:, rows])


def test_balanced_order_resumes():
  images = np.arange(43 * 12, dtype=np.uint16).astype(np.uint8)
  split = splits.ArraySplit(images.reshape(43, 2, 2, 3), _SKEWED)

  def make(start):
    return pipeline.train_iterator(
      split, batch_size=8, seed=0, sampling='balanced', start=start
    )

  assert _numbers(make(6), 7) == _numbers(make(0), 13)[6:]


def test_images_of_several_classes_are_not_balanced():
  with pytest.raises(errors.UserError, match='one class each'):
    _balanced(1, np.zeros((43, 3), np.float32))


# Resuming.


def _numbers(iterator, steps):
  return [np.asarray(next(iterator)['image']).tolist() for _ in range(steps)]


@pytest.mark.parametrize(
  'workers', [0, pytest.param(2, marks=pytest.mark.slow)]
)
def test_lazy_splits_give_what_memory_gives_and_resume(lazy, workers):
  def make(split, start=0):
    return pipeline.train_iterator(
      split, batch_size=5, seed=3, workers=workers, start=start
    )

  expected = _numbers(make(lazy[1]), 12)
  for start in (0, 5):
    iterator = make(lazy[0], start)
    assert _numbers(iterator, 7) == expected[start : start + 7]
    iterator.close()


def test_a_position_does_not_depend_on_processes():
  whole, part = (
    pipeline.train_iterator(
      _numbered(40), batch_size=4, seed=0, rows=rows, start=13
    )
    for rows in (None, np.array([1, 3]))
  )
  assert set(next(part)['label']) < set(next(whole)['label'])


def _sharding():
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  return NamedSharding(mesh, PartitionSpec('data'))


def _on_devices(count=80, batch_size=16):
  def read(start):
    return pipeline.train_iterator(
      _numbered(count), batch_size=batch_size, seed=5, start=start
    )

  return pipeline.DeviceIterator(read, _sharding())


def test_batches_on_devices_are_the_host_s_in_order():
  expected = _train(80, 16, 12, seed=5)
  iterator = _on_devices()
  assert iterator.seconds_waited == 0
  for labels in expected:
    batch = next(iterator)
    np.testing.assert_array_equal(batch['label'], labels)
    assert batch['image'].sharding.is_equivalent_to(_sharding(), 4)
    assert batch['image'].addressable_shards[0].data.shape == (2, 2, 2, 3)
  assert iterator.seconds_waited > 0


def test_the_state_on_devices_counts_what_was_yielded():
  iterator = _on_devices()
  assert iterator.get_state() == {'next_index': 0}
  _numbers(iterator, 7)
  state = iterator.get_state()
  assert state == {'next_index': 7}
  expected = _numbers(iterator, 6)
  iterator.set_state(state)
  assert iterator.get_state() == state
  assert _numbers(iterator, 6) == expected
  fresh = _on_devices()
  fresh.set_state(state)
  assert _numbers(fresh, 6) == expected


def test_a_batch_placed_twice_is_not_overwritten():
  iterator = _on_devices()
  batches = [next(iterator) for _ in range(9)]
  labels = np.stack([np.asarray(batch['label']) for batch in batches])
  np.testing.assert_array_equal(labels, _train(80, 16, 9, seed=5))


def test_a_closed_iterator_has_ended():
  iterator = _on_devices()
  next(iterator)
  iterator.close()
  assert list(iterator) == []


# Evaluation.


@pytest.mark.parametrize('processes', [1, 2, 3])
@pytest.mark.parametrize(
  ('count', 'batch_size'), [(23, 7), (7, 23), (13, 1), (12, 4)]
)
def test_every_image_is_evaluated_once(count, batch_size, processes):
  seen, batches = [], []
  size = batch_size * processes
  for process in range(processes):
    rows = np.arange(process, size, processes)
    part = list(
      pipeline.eval_batches(_numbered(count), batch_size=size, rows=rows)
    )
    batches.append(len(part))
    for batch in part:
      assert batch['image'].shape == (batch_size, 2, 2, 3)
      assert batch['mask'].dtype == np.float32
      seen += batch['label'][batch['mask'] == 1].tolist()
      assert set(batch['mask'].tolist()) <= {0.0, 1.0}
  assert sorted(seen) == list(range(count))
  assert batches == [-(-count // size)] * processes


def test_evaluation_is_in_order():
  batches = pipeline.eval_batches(_numbered(11), batch_size=4)
  labels = np.concatenate([batch['label'] for batch in batches])
  np.testing.assert_array_equal(labels[:11], np.arange(11))


def test_lazy_splits_are_evaluated(lazy):
  seen = []
  for batch in pipeline.eval_batches(lazy[0], batch_size=7):
    seen += batch['image'][batch['mask'] == 1].tolist()
  assert seen == lazy[1].images.tolist()


# Corrupt images, found while reading.


@pytest.fixture
def corrupt(tmp_path):
  def load(max_corrupt):
    counts = {'train': 4, 'val': 2}
    root = data_fixtures.make_folder(tmp_path / 'data', counts=counts)
    (root / 'train' / 'bird' / '000.png').write_bytes(b'not an image')
    (root / 'train' / 'dog' / '001.png').unlink()
    (root / 'train' / 'dog' / '001.png').symlink_to('nowhere')
    data = loader.load_classes(
      f'folder:{root}', image_size=8, cache_max_gb=0, max_corrupt=max_corrupt
    )
    return data.train

  return load


def test_corrupt_images_are_masked_out_of_an_evaluation(corrupt):
  split = corrupt(2)
  batches = list(pipeline.eval_batches(split, batch_size=5))
  mask = np.concatenate([batch['mask'] for batch in batches])[:12]
  assert np.flatnonzero(mask == 0).tolist() == [0, 9]
  assert len(split.unreadable.names) == 2
  assert split.unreadable.names[0].endswith('train/bird/000.png')


def test_corrupt_images_are_replaced_in_training(corrupt):
  split = corrupt(2)
  iterator = pipeline.train_iterator(split, batch_size=6, seed=0)
  for _ in range(4):
    batch = next(iterator)
    assert set(batch) == {'image', 'label'}
    assert np.all(batch['image'].max(axis=(1, 2, 3)) > 0)  # None is black.
  iterator.close()
  assert len(split.unreadable.names) == 2  # Each counts once.


def test_corrupt_images_of_all_splits_are_counted_together(tmp_path):
  counts = {'train': 4, 'val': 2, 'test': 2}
  root = data_fixtures.make_folder(tmp_path / 'data', counts=counts)
  for split in counts:
    (root / split / 'bird' / '001.png').write_bytes(b'')
  data = loader.load_classes(
    f'folder:{root}', image_size=8, cache_max_gb=0, max_corrupt=2
  )
  for split in (data.train, data.val):
    list(pipeline.eval_batches(split, batch_size=4))
  with pytest.raises(errors.UserError, match='3 corrupt image'):
    list(pipeline.eval_batches(data.test, batch_size=4))


@pytest.mark.parametrize('workers', [0, 1])
def test_corrupt_images_past_max_corrupt_end_the_training(corrupt, workers):
  iterator = pipeline.train_iterator(
    corrupt(1), batch_size=6, seed=0, workers=workers
  )
  with pytest.raises(errors.UserError, match='2 corrupt image'):
    _numbers(iterator, 4)
  iterator.close()
