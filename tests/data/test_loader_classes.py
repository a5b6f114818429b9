"""Tests of data by name: digits, folders, prepared TFDS sets, their cache."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import logging
from etils import epath
from PIL import Image

from tests.helpers import data_fixtures
from vit22b_jax import errors
from vit22b_jax.data import cache, loader, pipeline, splits
from vit22b_jax.data.readers import folders


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  path = tmp_path / 'cache'
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(path))
  return path


@pytest.fixture
def no_decoding(monkeypatch):
  """Makes decoding an image an error, to be switched on."""

  def forbid():
    def fail(*_):
      raise AssertionError('decoded again')

    monkeypatch.setattr('vit22b_jax.data.decode.square', fail)

  return forbid


def _rows(split):
  """The split's images as a set of bytes: unique, since they are noise."""
  return {split[i]['image'].tobytes() for i in range(len(split))}


def _load(path, **options):
  return loader.load_classes(f'folder:{path}', **({'image_size': 13} | options))


# Stratification.


def test_hold_out_takes_exact_shares_of_each_class():
  labels = np.repeat([0, 1, 2], [20, 40, 30])
  first, second = splits.hold_out(labels, 0.1, seed=3)
  np.testing.assert_array_equal(np.bincount(labels[second]), [2, 4, 3])
  together = np.sort(np.concatenate([first, second]))
  np.testing.assert_array_equal(together, np.arange(90))


def test_hold_out_of_uneven_classes_rounds_to_the_nearest_sum():
  labels = np.repeat(np.arange(7), [11, 13, 17, 19, 23, 29, 31])
  _, second = splits.hold_out(labels, 0.1, seed=0)
  counts = np.bincount(labels[second], minlength=7)
  assert counts.sum() == 14  # round(143 / 10)
  assert np.all(np.abs(counts - np.bincount(labels) / 10) < 1)


def test_hold_out_follows_the_seed_alone():
  labels = np.arange(100) % 10
  first = splits.hold_out(labels, 0.2, seed=1)[1]
  np.testing.assert_array_equal(first, splits.hold_out(labels, 0.2, seed=1)[1])
  assert not np.array_equal(first, splits.hold_out(labels, 0.2, seed=2)[1])


def test_hold_out_leaves_every_class_in_training():
  labels = np.array([0, 1, 2, 2, 2])
  first, second = splits.hold_out(labels, 0.5, seed=0)
  assert set(labels[first]) == {0, 1, 2}
  assert len(second) >= 1


# Digits.


def test_digits_are_all_there_in_three_disjoint_parts():
  from sklearn import datasets

  data = loader.load_classes('digits', image_size=8)
  assert (len(data.train), len(data.val), len(data.test)) == (1294, 144, 359)
  pixels = datasets.load_digits().images
  expected = {
    np.rint(np.repeat(image[..., None], 3, -1) * (255 / 16))
    .astype(np.uint8)
    .tobytes()
    for image in pixels
  }
  found = [_rows(part) for part in (data.train, data.val, data.test)]
  assert set.union(*found) == expected
  assert sum(map(len, found)) == len(expected)
  assert data.train[0]['label'].dtype == np.int32
  assert data.names == tuple('0123456789')


def test_the_test_part_of_digits_is_the_same_for_every_seed():
  one, two = (
    loader.load_classes('digits', image_size=8, seed=seed) for seed in (0, 1)
  )
  np.testing.assert_array_equal(one.test.images, two.test.images)
  assert not np.array_equal(one.val.images, two.val.images)


def test_digits_are_resized():
  data = loader.load_classes('digits', image_size=11)
  assert data.test.images.shape == (359, 11, 11, 3)


# Folders.


def test_a_folder_without_val_and_test(tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 20})
  data = _load(root, seed=1)
  assert data.names == ('bird', 'cat', 'dog')
  assert data.test is None
  np.testing.assert_array_equal(np.bincount(data.val.labels), [2, 2, 2])
  assert len(data.train) == 54
  assert not _rows(data.train) & _rows(data.val)


def test_a_folder_with_all_parts_keeps_them(tmp_path):
  counts = {'train': 5, 'val': 3, 'test': 2}
  root = data_fixtures.make_folder(tmp_path / 'data', counts=counts)
  data = _load(root)
  assert [len(s) for s in (data.train, data.val, data.test)] == [15, 9, 6]
  image = np.asarray(Image.open(root / 'test' / 'cat' / '001.png'))
  np.testing.assert_array_equal(data.test[3]['image'], image)
  assert data.test[3]['label'] == 1


def test_a_class_may_be_missing_from_test(tmp_path):
  root = data_fixtures.make_folder(
    tmp_path / 'data', counts={'train': 5, 'test': 2}
  )
  shutil.rmtree(root / 'test' / 'bird')
  np.testing.assert_array_equal(_load(root).test.labels, [1, 1, 2, 2])


def test_other_files_are_left_aside_and_deeper_images_found(tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 4})
  (root / 'train' / 'README.txt').write_text('about')
  (root / 'train' / 'cat' / 'notes.txt').write_text('about')
  (root / 'train' / 'cat' / '.hidden.png').write_text('no image')
  (root / 'train' / '.cache').mkdir()
  deeper = root / 'train' / 'cat' / '2024' / 'IMAGE.PNG'
  deeper.parent.mkdir()
  shutil.copy(root / 'train' / 'cat' / '000.png', deeper)
  records, class_names = folders.find(str(root))
  assert class_names == ('bird', 'cat', 'dog')
  np.testing.assert_array_equal(
    np.bincount(records['train'].labels()), [4, 5, 4]
  )


def _corrupt(root, *names):
  for name in names:
    (root / 'train' / name).write_bytes(b'not an image')


def test_corrupt_images_are_an_error_past_max_corrupt(tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 4})
  _corrupt(root, 'cat/001.png', 'dog/003.png')
  with pytest.raises(errors.UserError) as caught:
    _load(root, max_corrupt=1)
  message = str(caught.value)
  assert '2 corrupt' in message
  assert 'cat/001.png' in message and 'dog/003.png' in message
  assert '--config.data.max_corrupt=2' in message


def test_corrupt_images_up_to_max_corrupt_are_skipped_and_listed(tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 10})
  _corrupt(root, 'cat/001.png', 'dog/003.png')
  for _ in range(2):  # Decoded, then from the cache.
    data = _load(root, max_corrupt=2)
    assert len(data.train) + len(data.val) == 28
  with pytest.raises(errors.UserError, match='max_corrupt=0'):
    _load(root)


@pytest.fixture
def mend(monkeypatch):
  """Makes cat/001.png fail to be read, until it is called."""
  path_type = type(epath.Path('/'))
  read_bytes = path_type.read_bytes

  def fail(path):
    if str(path).endswith('cat/001.png'):
      raise OSError(errno.EIO, 'Input/output error')
    return read_bytes(path)

  monkeypatch.setattr(path_type, 'read_bytes', fail)
  return lambda: monkeypatch.setattr(path_type, 'read_bytes', read_bytes)


@pytest.mark.parametrize('max_corrupt', [0, 1])
def test_a_file_that_could_not_be_read_is_not_cached_as_corrupt(
  tmp_path, cache_dir, mend, max_corrupt
):
  root = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 4})
  if max_corrupt:
    data = _load(root, max_corrupt=1)
    assert len(data.train) + len(data.val) == 11
  else:
    reason = r'cat/001.png \(Input/output error\)'
    with pytest.raises(errors.UserError, match=reason):
      _load(root)
  assert not cache_dir.exists()
  mend()
  data = _load(root)
  assert len(data.train) + len(data.val) == 12
  image = np.asarray(Image.open(root / 'train' / 'cat' / '001.png'))
  assert image.tobytes() in _rows(data.train) | _rows(data.val)


@pytest.mark.usefixtures('mend')
def test_a_file_that_cannot_be_read_while_training_is_replaced(
  tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(logging.get_absl_logger(), 'propagate', True)
  counts = {'train': 1, 'val': 2}
  root = data_fixtures.make_folder(tmp_path / 'data', counts=counts)
  batch = _load(root, cache_max_gb=0).val.gather(np.arange(6))
  assert batch['readable'].tolist() == [True] * 3 + [False] + [True] * 2
  assert batch['label'].tolist() == [0, 0, 1, 2, 2, 2]
  np.testing.assert_array_equal(batch['image'][3], batch['image'][4])
  assert 'val/cat/001.png: Input/output error' in caplog.text


def test_lazily_decoded_images_equal_those_in_memory(tmp_path):
  root = data_fixtures.make_folder(
    tmp_path / 'data', counts={'train': 10, 'test': 3}, size=17
  )
  memory, lazy = _load(root), _load(root, cache_max_gb=0)
  assert isinstance(memory.train, splits.ArraySplit)
  assert isinstance(lazy.train, splits.LazySplit)
  for part in ('train', 'val', 'test'):
    one, two = getattr(memory, part), getattr(lazy, part)
    np.testing.assert_array_equal(one.labels, two.labels)
    index = np.arange(len(one))
    np.testing.assert_array_equal(
      one.gather(index)['image'], two.gather(index)['image']
    )


def _mistakes():
  def missing(root):
    shutil.rmtree(root)

  def empty(root):
    shutil.rmtree(root / 'train')

  def without_classes(root):
    shutil.rmtree(root / 'train')
    (root / 'train').mkdir()

  def one_class(root):
    shutil.rmtree(root / 'train' / 'cat')
    shutil.rmtree(root / 'train' / 'dog')

  def empty_class(root):
    shutil.rmtree(root / 'train' / 'cat')
    (root / 'train' / 'cat').mkdir()

  def unknown_class(root):
    (root / 'test' / 'fish').mkdir(parents=True)

  def empty_test(root):
    (root / 'test').mkdir()

  return [
    (missing, 'no folder'),
    (empty, 'no train folder'),
    (without_classes, '0 class folder'),
    (one_class, '1 class folder'),
    (empty_class, 'no image in class folder .*cat'),
    (unknown_class, 'fish has no counterpart'),
    (empty_test, 'test holds no class folder'),
  ]


@pytest.mark.parametrize(
  ('break_it', 'message'), _mistakes(), ids=lambda p: getattr(p, '__name__', '')
)
def test_mistakes_in_folders(tmp_path, break_it, message):
  root = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 3})
  break_it(root)
  for cache_max_gb in (4, 0):  # in memory, and read while training
    with pytest.raises(errors.UserError, match=message):
      _load(root, max_corrupt=99, cache_max_gb=cache_max_gb)


# The cache.


def test_the_second_start_decodes_nothing(tmp_path, cache_dir, no_decoding):
  root = data_fixtures.make_folder(tmp_path / 'data')
  first = _load(root)
  no_decoding()
  second = _load(root)
  np.testing.assert_array_equal(first.train.images, second.train.images)
  assert len(list(cache_dir.iterdir())) == 1


@pytest.mark.parametrize('change', ['image_size', 'file', 'added', 'removed'])
def test_changed_data_are_decoded_again(tmp_path, cache_dir, change):
  root = data_fixtures.make_folder(tmp_path / 'data')
  before = _load(root)
  path = root / 'train' / 'cat' / '003.png'
  size = 13
  if change == 'image_size':
    size = 8
  elif change == 'file':
    Image.new('RGB', (13, 13), (1, 2, 3)).save(path)
  elif change == 'added':
    shutil.copy(path, path.with_name('new.png'))
  else:
    path.unlink()
  after = _load(root, image_size=size)
  expected = {'added': 22, 'removed': 20}.get(change, 21)
  assert len(after.train) + len(after.val) == expected
  if change == 'file':
    rows = _rows(after.train) | _rows(after.val)
    assert np.full((13, 13, 3), (1, 2, 3), np.uint8).tobytes() in rows
    assert rows != _rows(before.train) | _rows(before.val)
  # The stale copy is gone; another size is another set.
  assert len(list(cache_dir.iterdir())) == (2 if change == 'image_size' else 1)


def _damage(entry, name, kind):
  """Changes a file of a cache: what a power cut, a disk or a person does."""
  path = entry / name
  data = bytearray(path.read_bytes())
  if kind == 'missing':
    path.unlink()
    return
  if kind == 'other length':
    np.save(path, np.load(path)[:-1])
    return
  data[-3] ^= 1  # The last pixel, label or character but two.
  path.write_bytes({'empty': b'', 'cut': data[:500], 'flipped': data}[kind])


@pytest.mark.parametrize('kind', ['empty', 'cut', 'missing', 'flipped'])
@pytest.mark.parametrize(
  'name', ['train_images.npy', 'train_labels.npy', 'meta.json']
)
def test_a_damaged_cache_is_made_anew(tmp_path, cache_dir, name, kind):
  root = data_fixtures.make_folder(tmp_path / 'data')
  before = _load(root)
  (entry,) = cache_dir.iterdir()
  content = (entry / name).read_bytes()
  _damage(entry, name, kind)
  after = _load(root)
  np.testing.assert_array_equal(before.train.images, after.train.images)
  np.testing.assert_array_equal(before.train.labels, after.train.labels)
  if kind != 'cut' or len(content) > 500:
    assert (entry / name).read_bytes() == content


def test_labels_of_another_length_are_noticed(tmp_path, cache_dir):
  root = data_fixtures.make_folder(tmp_path / 'data')
  before = _load(root)
  (entry,) = cache_dir.iterdir()
  _damage(entry, 'train_labels.npy', 'other length')
  np.testing.assert_array_equal(_load(root).train.labels, before.train.labels)


def test_other_pixels_of_the_same_name_size_and_time_are_decoded(tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'data')
  before = _rows(_load(root).train) | _rows(_load(root).val)
  path = root / 'train' / 'cat' / '003.png'
  stat, data = path.stat(), bytearray(path.read_bytes())
  image = Image.new('RGB', (13, 13), (1, 2, 3))
  image.save(path, 'PNG')
  new = path.read_bytes()
  assert len(new) < len(data)
  path.write_bytes(new + bytes(len(data) - len(new)))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  after = _rows(_load(root).train) | _rows(_load(root).val)
  assert after - before == {np.asarray(image).tobytes()}


def test_an_unwritable_cache_is_done_without(tmp_path, monkeypatch):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(blocked / 'cache'))
  root = data_fixtures.make_folder(tmp_path / 'data')
  assert len(_load(root).train) == 19


def test_a_cache_appears_whole_or_not_at_all(cache_dir, monkeypatch):
  path = cache.folder('set', 'here', [1])

  def full(*_):
    raise OSError('no space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  cache.write(path, {'a': np.zeros(3)}, {})
  assert cache.read(path) is None
  assert list(cache_dir.iterdir()) == []


# TFDS.


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Data folders with stand-ins of cifar10: tfrecord and array_record."""
  out = {}
  for kind in ('tfrecord', 'array_record'):
    out[kind] = tmp_path_factory.mktemp(kind)
    data_fixtures.make_tfds(
      out[kind], counts={'train': 120, 'test': 30}, file_format=kind
    )
  return out


@pytest.mark.parametrize('kind', ['tfrecord', 'array_record'])
def test_tfds_sets_are_read(prepared, kind):
  data = loader.load_classes('cifar10', dir=str(prepared[kind]), image_size=32)
  assert (len(data.train), len(data.val), len(data.test)) == (108, 12, 30)
  np.testing.assert_array_equal(data.test.labels, np.arange(30) % 10)
  expected = data_fixtures.images(np.arange(30) % 10, seed=1)
  np.testing.assert_array_equal(data.test.images, expected)
  assert len(data.names) == 10
  assert not _rows(data.train) & _rows(data.val)
  assert len(_rows(data.train) | _rows(data.val)) == 120


def test_tfds_data_dir_of_the_environment(prepared):
  code = (
    'from vit22b_jax.data import loader\n'
    'print(len(loader.load_classes("cifar10", image_size=32).test))'
  )
  out = _run(code, TFDS_DATA_DIR=str(prepared['array_record']))
  assert out.split()[-1] == '30'


def _run(code, **environment):
  root = pathlib.Path(__file__).parents[2]
  return subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    capture_output=True,
    text=True,
    cwd=root,
    env=os.environ | environment,
  ).stdout


def test_neither_start_needs_tensorflow_nor_the_second_an_image(prepared):
  place = str(prepared['tfrecord'])
  code = f"""
import sys
from vit22b_jax.data import decode, loader
for _ in range(2):
  data = loader.load_classes('cifar10', dir={place!r}, image_size=9)
  decode.square = lambda *_, **__: 1 / 0
print(len(data.train), 'tensorflow' in sys.modules)
"""
  assert _run(code).split()[-2:] == ['108', 'False']


@pytest.mark.parametrize('damage', ['truncated', 'missing'])
def test_incomplete_tfrecords_are_an_error(prepared, tmp_path, damage):
  shutil.copytree(prepared['tfrecord'], tmp_path / 'set')
  (path,) = (tmp_path / 'set').rglob('*train.tfrecord*')
  if damage == 'truncated':
    path.write_bytes(path.read_bytes()[:-7])
  else:
    path.unlink()
  count = {'truncated': 119, 'missing': 0}[damage]
  with pytest.raises(errors.UserError, match=f'{count} records of train, exp'):
    loader.load_classes('cifar10', dir=str(tmp_path / 'set'), image_size=32)


def test_small_images_are_kept_small_and_enlarged_when_read(prepared):
  options = {'dir': str(prepared['array_record']), 'image_size': 64}
  large = loader.load_classes('cifar10', **options)
  small = loader.load_classes('cifar10', **options, cache_max_gb=0.001)
  assert isinstance(small.train, splits.ArraySplit)
  assert small.train[0]['image'].shape == (64, 64, 3)
  np.testing.assert_array_equal(large.train.images, small.train.images)


def test_large_array_records_are_read_lazily(prepared):
  options = {'dir': str(prepared['array_record']), 'image_size': 32}
  memory = loader.load_classes('cifar10', **options)
  lazy = loader.load_classes('cifar10', **options, cache_max_gb=0)
  assert isinstance(lazy.train, splits.LazySplit)
  np.testing.assert_array_equal(memory.val.labels, lazy.val.labels)
  index = np.arange(len(lazy.val))
  np.testing.assert_array_equal(
    memory.val.images, lazy.val.gather(index)['image']
  )


def test_large_tfrecords_name_the_command(prepared):
  with pytest.raises(errors.UserError) as caught:
    loader.load_classes(
      'cifar10', dir=str(prepared['tfrecord']), image_size=32, cache_max_gb=0
    )
  message = str(caught.value)
  assert 'convert_format' in message
  assert str(prepared['tfrecord'] / 'cifar10' / '3.0.2') in message
  assert 'cache_max_gb' in message


def test_a_validation_part_and_grayscale_of_another_shape(tmp_path):
  data_fixtures.make_tfds(
    tmp_path,
    'mnist',
    version='3.0.1',
    counts={'train': 40, 'validation': 20, 'test': 10},
    shape=(28, 28, 1),
    file_format='array_record',
  )
  data = loader.load_classes('mnist', dir=str(tmp_path), image_size=28)
  assert (len(data.train), len(data.val), len(data.test)) == (40, 20, 10)
  images = data.test.images
  np.testing.assert_array_equal(images[..., 0], images[..., 2])


def test_an_unlabeled_test_part_is_left_aside(tmp_path):
  data_fixtures.make_tfds(
    tmp_path,
    counts={'train': 40, 'test': 10},
    file_format='array_record',
    labeled=('train',),
  )
  for gigabytes in (4, 0):
    data = loader.load_classes(
      'cifar10', dir=str(tmp_path), image_size=32, cache_max_gb=gigabytes
    )
    assert data.test is None
    assert 'test' in data.fingerprint


@pytest.mark.parametrize('cache_max_gb', [4, 0], ids=['memory', 'lazy'])
def test_labels_out_of_range_are_an_error(tmp_path, cache_max_gb):
  data_fixtures.make_tfds(
    tmp_path,
    counts={'train': 40},
    file_format='array_record',
    labeled=(),
  )
  with pytest.raises(errors.UserError, match=r'has label -1, expected 0 to 9'):
    data = loader.load_classes(
      'cifar10', dir=str(tmp_path), image_size=32, cache_max_gb=cache_max_gb
    )
    next(pipeline.train_iterator(data.train, batch_size=4, seed=0))


def test_an_unknown_name_suggests_close_ones(tmp_path):
  with pytest.raises(errors.UserError, match="Did you mean 'cifar10'"):
    loader.load_classes('cifra10', dir=str(tmp_path), image_size=32)


def test_a_set_that_cannot_be_had_says_how_to_prepare_it(tmp_path, monkeypatch):
  def offline(*_):
    raise OSError('Name or service not known')

  monkeypatch.setattr('socket.getaddrinfo', offline)
  for variable in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
    monkeypatch.delenv(variable, raising=False)
  with pytest.raises(errors.UserError) as caught:
    loader.load_classes('cifar100', dir=str(tmp_path), image_size=32)
  message = str(caught.value)
  assert 'Name or service not known' in message
  assert 'tfds.builder("cifar100"' in message
  assert f'--config.data.dir={tmp_path}' in message


def test_a_set_is_prepared_where_there_is_a_network(
  prepared, tmp_path, monkeypatch
):
  import tensorflow_datasets as tfds

  def download(builder):
    assert builder.info.file_format.value == 'array_record'
    shutil.copytree(prepared['array_record'], tmp_path, dirs_exist_ok=True)

  monkeypatch.setattr('socket.getaddrinfo', lambda *_: [])
  monkeypatch.setattr(
    tfds.core.DatasetBuilder, 'download_and_prepare', download
  )
  data = loader.load_classes('cifar10', dir=str(tmp_path), image_size=32)
  assert len(data.test) == 30


def test_a_set_of_something_else_is_refused(tmp_path):
  import tensorflow_datasets as tfds

  tfds.dataset_builders.store_as_tfds_dataset(
    name='cifar10',
    version='3.0.2',
    features=tfds.features.FeaturesDict({'text': tfds.features.Text()}),
    split_datasets={'train': [(0, {'text': 'a'})]},
    data_dir=tmp_path,
    file_format='array_record',
  )
  with pytest.raises(errors.UserError, match='not a set for image class'):
    loader.load_classes('cifar10', dir=str(tmp_path), image_size=32)


# Remote file systems.


@pytest.mark.parametrize('cache_max_gb', [4, 0], ids=['memory', 'lazy'])
def test_folders_may_be_remote(tmp_path, monkeypatch, cache_max_gb):
  counts = {'train': 5, 'test': 2}
  root = data_fixtures.make_folder(tmp_path / 'bucket/data', counts=counts)
  here = _load(root)
  data_fixtures.make_remote(monkeypatch, tmp_path)
  there = _load('s3://bucket/data', cache_max_gb=cache_max_gb)
  assert there.names == here.names
  index = np.arange(len(here.train))
  np.testing.assert_array_equal(
    there.train.gather(index)['image'], here.train.images
  )
