"""Tests of two domains: where they come from, sizes, unpaired batches."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from tests.helpers import data_fixtures
from vit22b_jax import errors
from vit22b_jax.data import (
  catalog,
  loader,
  pipeline,
  splits,
)

COUNTS = data_fixtures.DOMAINS


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  path = tmp_path / 'cache'
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(path))
  return path


@pytest.fixture
def root(tmp_path):
  return data_fixtures.make_domains(tmp_path / 'dark2bright')


def _load(path, **options):
  return loader.load_domains(f'folder:{path}', **({'image_size': 13} | options))


def _rows(split):
  """The split's images as a set of bytes: unique, since they are noise."""
  return {split[i]['image'].tobytes() for i in range(len(split))}


def _files(path):
  return [np.asarray(Image.open(file)) for file in sorted(path.iterdir())]


def _pair(a, b):
  """A pair of splits whose images are the numbers of their records."""

  def numbered(count):
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return splits.ArraySplit(images)

  return catalog.Pair(numbered(a), numbered(b))


def _train(pair, steps, batch_size=4, **options):
  """Numbers of the first batches of a and b, each [steps, B]."""
  iterator = pipeline.pair_iterator(
    pair, batch_size=batch_size, **({'seed': 0} | options)
  )
  batches = [next(iterator) for _ in range(steps)]
  iterator.close()
  return (np.stack([b[k][:, 0, 0, 0] for b in batches]) for k in 'ab')


# Where domains come from.


def test_a_folder(root):
  data = _load(root, seed=1)
  assert data.names == ('dark', 'bright')
  assert [len(data.train.a), len(data.val.a), len(data.test.a)] == [21, 2, 3]
  assert [len(data.train.b), len(data.val.b), len(data.test.b)] == [37, 4, 5]
  for letter, domain in (('A', 'a'), ('B', 'b')):
    train, val, test = (
      getattr(pair, domain) for pair in (data.train, data.val, data.test)
    )
    assert not _rows(train) & _rows(val)
    expected = {image.tobytes() for image in _files(root / f'train{letter}')}
    assert _rows(train) | _rows(val) == expected
    np.testing.assert_array_equal(test.images, _files(root / f'test{letter}'))
    assert train[0]['label'] == 0


def test_val_follows_the_seed(root):
  first, again, other = (_rows(_load(root, seed=s).val.b) for s in (1, 1, 2))
  assert first == again
  assert first != other


def test_test_folders_are_optional_but_not_one_of_them(root):
  shutil.rmtree(root / 'testA')
  with pytest.raises(errors.UserError, match='has no testA'):
    _load(root)
  shutil.rmtree(root / 'testB')
  assert _load(root).test is None


@pytest.mark.parametrize('kind', ['tfrecord', 'array_record'])
def test_a_tfds_set(tmp_path, kind):
  data_fixtures.make_tfds(
    tmp_path,
    'cycle_gan',
    config='monet2photo',
    version='3.0.0',
    num_classes=2,
    counts=COUNTS,
    shape=(None, None, 3),
    file_format=kind,
    labeled=tuple(COUNTS),
  )
  data = loader.load_domains(
    'cycle_gan/monet2photo', dir=str(tmp_path), image_size=32
  )
  assert data.names == ('monet', 'photo')
  assert len(data.train.a) + len(data.val.a) == COUNTS['trainA']
  assert len(data.train.b) + len(data.val.b) == COUNTS['trainB']
  expected = data_fixtures.images(np.arange(5) % 2, seed=3)
  np.testing.assert_array_equal(data.test.b.images, expected)
  options = {'dir': str(tmp_path), 'image_size': 32, 'cache_max_gb': 0}
  if kind == 'tfrecord':
    with pytest.raises(errors.UserError, match='convert_format'):
      loader.load_domains('cycle_gan/monet2photo', **options)
  else:
    lazy = loader.load_domains('cycle_gan/monet2photo', **options)
    assert isinstance(lazy.test.b, splits.LazySplit)
    batch = lazy.test.b.gather(np.arange(5))
    np.testing.assert_array_equal(batch['image'], expected)


def test_the_second_start_decodes_nothing_and_none_needs_tensorflow(root):
  code = f"""
import sys
from vit22b_jax.data import decode, loader
for _ in range(2):
  data = loader.load_domains({f'folder:{root}'!r}, image_size=9, load_size=11)
  decode.resized = lambda *_, **__: 1 / 0
print(len(data.train.a), 'tensorflow' in sys.modules)
"""
  out = subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
    env=dict(os.environ),
  ).stdout
  assert out.split()[-2:] == ['21', 'False']


def test_every_choice_has_its_own_cache(root):
  _load(root, load_size=17)
  for options in (
    {'load_size': 19},
    {'load_size': 17, 'seed': 1},
    {'load_size': 17, 'val_fraction': 0.5},
    {'image_size': 11, 'load_size': 17},
    {'mode': 'scale_width', 'load_size': 17},
  ):
    _load(root, load_size=17)
    data = _load(root, **options)
    assert data.train.a[0]['image'].shape[0] == options.get('load_size')
    assert data.val.a[0]['image'].shape[0] == options.get('image_size', 13)
    assert not _rows(data.train.a) & _rows(data.val.a)
    if 'val_fraction' in options:
      assert len(data.val.a) == 12


# Sizes.


def test_training_images_are_larger_than_those_of_an_evaluation(root):
  data = _load(root, load_size=19, image_size=12)
  assert data.train.a[0]['image'].shape == (19, 19, 3)
  assert data.val.b[0]['image'].shape == (12, 12, 3)
  file = Image.open(root / 'testB' / '002.png')
  np.testing.assert_array_equal(
    data.test.b[2]['image'], file.resize((12, 12), Image.Resampling.BICUBIC)
  )


def test_scale_width_keeps_the_proportions(tmp_path):
  root = data_fixtures.make_domains(tmp_path / 'data', sizes=((10, 20),))
  data = _load(root, mode='scale_width', load_size=30, image_size=12)
  assert data.train.a[0]['image'].shape == (15, 30, 3)
  file = Image.open(root / 'testA' / '001.png')
  resized = np.asarray(file.resize((30, 15), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(data.test.a[1]['image'], resized[1:13, 9:21])


def test_images_of_one_size_are_kept_whole_for_the_crop(root):
  data = _load(root, mode='crop', image_size=8)
  assert isinstance(data.train.a, splits.ArraySplit)
  assert data.train.a[0]['image'].shape == (13, 13, 3)
  np.testing.assert_array_equal(
    data.test.a[1]['image'], _files(root / 'testA')[1][2:10, 2:10]
  )


def _is_part(image, whole):
  height, width = image.shape[:2]
  windows = np.lib.stride_tricks.sliding_window_view(whole, (height, width, 3))[
    ..., 0, :, :, :
  ]
  return bool(np.all(windows == image, axis=(-3, -2, -1)).any())


@pytest.mark.parametrize('workers', [0, 1])
def test_images_of_own_sizes_are_cropped_at_random(tmp_path, workers):
  sizes = ((13, 17), (11, 11), (9, 23))
  root = data_fixtures.make_domains(tmp_path / 'data', sizes=sizes)
  data = _load(root, mode='crop', image_size=8)
  assert isinstance(data.train.a, splits.LazySplit)
  assert isinstance(data.val.a, splits.ArraySplit)
  files = _files(root / 'trainA')

  def crops(**options):
    iterator = pipeline.pair_iterator(
      data.train, seed=0, **({'batch_size': 7} | options)
    )
    out = [next(iterator)['a'] for _ in range(6)]
    iterator.close()
    return np.stack(out)

  found = crops(workers=workers).reshape(-1, 8, 8, 3)
  assert len({image.tobytes() for image in found}) > len(data.train.a)
  for image in found[:9]:
    assert any(_is_part(image, file) for file in files)
  if not workers:
    whole = crops(batch_size=4).reshape(6, 4, -1)
    part = crops(batch_size=4, rows=np.array([1, 2])).reshape(6, 2, -1)
    np.testing.assert_array_equal(whole[:, [1, 2]], part)
  else:
    np.testing.assert_array_equal(found, crops().reshape(-1, 8, 8, 3))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'mode': 'crop', 'image_size': 14}, r'23 image\(s\) are smaller'),
    ({'mode': 'none', 'image_size': 12}, 'of another size'),
    ({'load_size': 12}, 'load_size=12 is smaller'),
  ],
)
def test_mistakes_in_sizes(root, options, message):
  with pytest.raises(errors.UserError, match=message):
    _load(root, **options)


def test_images_that_get_too_low_are_mistakes(tmp_path):
  root = data_fixtures.make_domains(tmp_path / 'data', sizes=((10, 20),))
  with pytest.raises(errors.UserError, match='lower than the crop once 20 w'):
    _load(root, mode='scale_width', load_size=20, image_size=13)


def test_a_single_small_image_is_named(root):
  Image.new('RGB', (13, 7)).save(root / 'trainB' / '005.png')
  with pytest.raises(errors.UserError, match=r'(?s)1 image.*7x13') as caught:
    _load(root, mode='crop', image_size=8)
  assert 'trainB/005.png' in str(caught.value)
  assert _load(root, image_size=8).train.b[0]['image'].shape == (8, 8, 3)


# Bad files.


def _mistakes():
  def missing(root):
    shutil.rmtree(root)

  def empty_domain(root):
    shutil.rmtree(root / 'trainB')
    (root / 'trainB').mkdir()
    (root / 'trainB' / 'README.txt').write_text('about')

  def empty_test(root):
    shutil.rmtree(root / 'testA')
    (root / 'testA').mkdir()

  def no_domain(root):
    shutil.rmtree(root / 'trainA')

  def classes(root):
    for name in COUNTS:
      shutil.rmtree(root / name)
    (root / 'train').mkdir()

  def two_images(root):
    for file in list((root / 'trainA').iterdir())[2:]:
      file.unlink()

  def one_of_test(root):
    for file in list((root / 'testB').iterdir())[1:]:
      file.unlink()

  def unreadable_domain(root):
    for file in (root / 'trainA').iterdir():
      file.write_bytes(b'')

  return [
    (missing, 'no folder .*; expected PATH/trainA'),
    (empty_domain, 'no image in folder .*trainB'),
    (empty_test, 'no image in folder .*testA'),
    (no_domain, r'has no trainA \(found: trainB, testA'),
    (classes, r'has no trainA and no trainB \(found: none\)'),
    (two_images, r'has 2 image\(s\) in trainA; 3 are the least'),
    (one_of_test, r'has 1 image\(s\) in testB; 2 are the least'),
    (unreadable_domain, r'0 image\(s\) in val_a \(readable\)'),
  ]


@pytest.mark.parametrize(
  ('break_it', 'message'), _mistakes(), ids=lambda p: getattr(p, '__name__', '')
)
def test_mistakes_in_folders(root, break_it, message):
  break_it(root)
  with pytest.raises(errors.UserError, match=message):
    _load(root, max_corrupt=99)


def test_three_images_are_enough(tmp_path):
  counts = {'trainA': 3, 'trainB': 3}
  data = _load(data_fixtures.make_domains(tmp_path / 'data', counts=counts))
  assert (len(data.train.a), len(data.val.a)) == (1, 2)


@pytest.mark.parametrize('preprocess', ['resize_and_crop', 'crop'])
def test_unreadable_files_are_counted(root, preprocess):
  (root / 'trainA' / '004.png').write_bytes(b'not an image')
  path = root / 'testB' / '001.png'
  path.write_bytes(path.read_bytes()[:200])
  options = {'mode': preprocess, 'image_size': 8, 'val_fraction': 0.3}
  for _ in range(2):  # Decoded, then from the cache.
    data = _load(root, **options, max_corrupt=2)
    assert len(data.train.a) + len(data.val.a) == COUNTS['trainA'] - 1
    assert len(data.test.b) == COUNTS['testB'] - 1
  with pytest.raises(errors.UserError, match='2 corrupt image') as caught:
    _load(root, **options)
  reason = '(no image, or of a format that is not decoded)'
  assert f'trainA/004.png {reason}' in str(caught.value)
  assert 'testB/001.png' in str(caught.value)


def test_unreadable_files_met_while_training_are_replaced(root):
  for number in range(0, 23, 4):
    (root / 'trainA' / f'{number:03}.png').write_bytes(b'not an image')
  # Three are in train; what is in val isn't met.
  options = {'cache_max_gb': 0, 'max_corrupt': 6}
  iterator = pipeline.pair_iterator(
    _load(root, **options).train, batch_size=10, seed=0
  )
  for _ in range(4):
    batch = next(iterator)
    assert np.all(batch['a'].max(axis=(1, 2, 3)) > 0)
  iterator.close()


def test_a_folder_may_be_remote(root, tmp_path, monkeypatch):
  here = _load(root)
  data_fixtures.make_remote(monkeypatch, tmp_path)
  there = _load('s3://dark2bright')
  np.testing.assert_array_equal(there.train.b.images, here.train.b.images)
  assert there.names == ('dark', 'bright')


# Pairs.


def _make_pairs(root, sizes=((13, 13),), beside=False):
  """Pairs PART/NAME: noise, and its negative; two files or side by side."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 11), ('test', 3)):
    for row in range(count):
      shape = (*sizes[row % len(sizes)], 3)
      image = rng.integers(0, 256, shape).astype(np.uint8)
      both = {f'{split}A': image, f'{split}B': 255 - image}
      if beside:
        both = {split: np.concatenate([image, 255 - image], axis=1)}
      for folder, pixels in both.items():
        # The order of the files is another one in B.
        kind = 'png' if folder[-1] != 'B' else ('bmp', 'webp')[row % 2]
        path = root / folder / f'{row}.{kind}'
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {'lossless': True} if kind == 'webp' else {}
        Image.fromarray(pixels).save(path, **options)
  return root


@pytest.mark.parametrize('beside', [False, True], ids=['names', 'beside'])
@pytest.mark.parametrize('cache_max_gb', [4, 0], ids=['memory', 'lazy'])
@pytest.mark.parametrize('mode', ['resize_and_crop', 'crop'])
def test_pairs_stay_together(tmp_path, mode, cache_max_gb, beside):
  sizes = ((13, 13),) if mode == 'resize_and_crop' else ((13, 17), (11, 11))
  root = _make_pairs(tmp_path / 'dark2bright', sizes, beside)
  options = {'mode': mode, 'image_size': 9, 'cache_max_gb': cache_max_gb}
  if mode == 'resize_and_crop':
    options['image_size'] = 13
  data = _load(root, paired=True, **options)
  assert [len(p.a) for p in (data.train, data.val, data.test)] == [9, 2, 3]
  for part in (data.val, data.test):
    for row in range(len(part.a)):
      one, other = (split[row]['image'] for split in (part.a, part.b))
      np.testing.assert_array_equal(one, 255 - other)
  iterator = pipeline.pair_iterator(
    data.train, seed=0, batch_size=4, pairing='paired'
  )
  for _ in range(5):
    batch = next(iterator)
    np.testing.assert_array_equal(batch['a'], 255 - batch['b'])
  iterator.close()
  info = catalog.count_domains(f'folder:{root}', paired=True)
  assert (len(info.train.a), len(info.val.b), len(info.test.a)) == (9, 2, 3)


def test_an_odd_column_between_a_pair_is_dropped(tmp_path):
  root = _make_pairs(tmp_path / 'data', beside=True)
  pixels = np.arange(13 * 27 * 3).reshape(13, 27, 3).astype(np.uint8)
  Image.fromarray(pixels).save(root / 'test' / '1.png')
  pair = _load(root, paired=True).test
  np.testing.assert_array_equal(pair.a[1]['image'], pixels[:, :13])
  np.testing.assert_array_equal(pair.b[1]['image'], pixels[:, 14:])


def _wrong_pairs():
  def alone(root):
    (root / 'trainB' / '3.webp').unlink()

  def other_name(root):
    (root / 'testA' / '1.png').rename(root / 'testA' / 'one.png')

  def neither(root):
    shutil.rmtree(root / 'trainA')
    shutil.rmtree(root / 'trainB')

  def half(root):
    shutil.rmtree(root / 'trainB')

  def other_size(root):
    Image.new('RGB', (13, 14)).save(root / 'trainA' / '3.png')

  def corrupt(root):
    (root / 'trainA' / '3.png').write_bytes(b'not an image')

  return [
    (alone, r"1 image\(s\) of trainA and trainB .*no partner .*as '3'"),
    (other_name, "2 image.* of testA and testB .*such as '1'"),
    (neither, 'no train folder .*side by side'),
    (half, 'has no trainB'),
    (other_size, r'different sizes: .*3.png \(14, 13\)'),
    (corrupt, '1 corrupt image'),
  ]


@pytest.mark.parametrize(
  ('break_it', 'message'),
  _wrong_pairs(),
  ids=lambda p: getattr(p, '__name__', ''),
)
def test_mistakes_in_pairs(tmp_path, break_it, message):
  root = _make_pairs(tmp_path / 'data')
  break_it(root)
  mode = 'crop' if 'sizes' in message else 'resize_and_crop'
  with pytest.raises(errors.UserError, match=message):
    _load(root, paired=True, mode=mode, image_size=9)


@pytest.mark.parametrize('beside', [False, True], ids=['names', 'beside'])
@pytest.mark.parametrize('mode', ['resize_and_crop', 'crop'])
def test_a_corrupt_image_of_a_pair_says_what_can_be_done(
  tmp_path, mode, beside
):
  root = _make_pairs(tmp_path / 'data', beside=beside)
  path = root / ('train' if beside else 'trainA') / '3.png'
  path.write_bytes(b'not an image')
  with pytest.raises(errors.UserError) as caught:
    _load(root, paired=True, mode=mode, image_size=9)
  message = str(caught.value)
  assert f'{path} (no image, or of a format that' in message
  assert message.endswith('\nMend them, or delete both images of the pair.')


def test_pairs_are_of_folders_and_whole(tmp_path):
  with pytest.raises(errors.UserError, match="must be 'folder:PATH'"):
    loader.load_domains('fruit', image_size=16, paired=True)
  root = _make_pairs(tmp_path / 'data')
  with pytest.raises(errors.UserError, match=r'max_corrupt=1 with .*partner'):
    _load(root, paired=True, max_corrupt=1)


# Batches.


def test_unpaired_domains_follow_their_own_permutations():
  pair = _pair(12, 20)
  a, b = _train(pair, 15)
  for epoch in b.reshape(3, 20):  # An epoch is the larger domain's.
    np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
  passes = a.reshape(5, 12)
  for row in passes:
    np.testing.assert_array_equal(np.sort(row), np.arange(12))
  assert len({tuple(row) for row in passes}) == 5
  assert pipeline.pair_steps_per_epoch(pair, 4, 'unpaired') == 5


def test_domains_of_one_size_are_not_shuffled_alike():
  a, b = _train(_pair(24, 24), 6)
  assert not np.array_equal(a, b)


def test_pairs_by_index_stay_together():
  pair = _pair(12, 20)
  a, b = _train(pair, 6, pairing='index')
  np.testing.assert_array_equal(a, b)
  first, second = a.reshape(2, 12)
  np.testing.assert_array_equal(np.sort(first), np.arange(12))
  np.testing.assert_array_equal(np.sort(second), np.arange(12))
  assert not np.array_equal(first, second)
  assert pipeline.pair_steps_per_epoch(pair, 4, 'index') == 3


def test_order_follows_the_seed():
  one, two, again = (
    np.stack(list(_train(_pair(24, 28), 7, seed=seed))) for seed in (0, 1, 0)
  )
  np.testing.assert_array_equal(one, again)
  assert not np.array_equal(one[0], two[0])
  assert not np.array_equal(one[1], two[1])


@pytest.mark.parametrize('pairing', ['unpaired', 'index'])
def test_processes_partition_the_batches_of_one(pairing):
  pair, options = _pair(14, 23), {'pairing': pairing}
  whole = _train(pair, 9, batch_size=6, **options)
  whole = list(whole)
  for rows in ([0, 1], [2, 5], [3, 4]):
    part = _train(pair, 9, batch_size=6, rows=np.array(rows), **options)
    for one, some in zip(whole, part, strict=True):
      np.testing.assert_array_equal(one[:, rows], some)


def test_batches_larger_than_a_domain_are_mistakes():
  pair = _pair(12, 20)
  with pytest.raises(errors.UserError, match=r'12 images.*size=13'):
    pipeline.pair_steps_per_epoch(pair, 13, 'unpaired')
  with pytest.raises(errors.UserError, match='batch_size=14'):
    pipeline.pair_iterator(pair, batch_size=14, seed=0)


def _both(iterator, steps):
  batches = [next(iterator) for _ in range(steps)]
  return [{k: np.asarray(v).tolist() for k, v in b.items()} for b in batches]


def test_batches_resume_from_a_position(root):
  pair = _load(root, cache_max_gb=0, image_size=8).train

  def make(start):
    return pipeline.pair_iterator(pair, batch_size=5, seed=3, start=start)

  whole, rest = make(0), make(3)
  assert _both(rest, 7) == _both(whole, 10)[3:]
  for iterator in (whole, rest):
    iterator.close()
    assert list(iterator) == []


def test_batches_go_to_devices_and_resume_there():
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))

  def make():
    read = functools.partial(
      pipeline.pair_iterator, _pair(20, 31), batch_size=8, seed=1
    )
    return pipeline.DeviceIterator(lambda start: read(start=start), sharding)

  iterator = make()
  batch = next(iterator)
  assert set(batch) == {'a', 'b'}
  assert batch['a'].sharding.is_equivalent_to(sharding, 4)
  state = iterator.get_state()
  assert state == {'next_index': 1}
  expected = _both(iterator, 9)
  fresh = make()
  fresh.set_state(state)
  assert _both(fresh, 9) == expected


def test_every_image_of_a_domain_is_evaluated_once(root):
  test = _load(root).test
  batches = list(pipeline.eval_batches(test.b, batch_size=3))
  assert [b['mask'].tolist() for b in batches] == [[1, 1, 1], [1, 1, 0]]
  assert set(batches[0]) == {'image', 'label', 'mask', 'index'}
  images = np.concatenate([b['image'] for b in batches])[:5]
  np.testing.assert_array_equal(images, test.b.images)
