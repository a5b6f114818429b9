"""`--mode=fid`: any two sets of images, and the mistakes in naming them."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from configs import fid as config_file
from tests.helpers import data_fixtures
from vit22b_jax import errors
from vit22b_jax.data.readers import walk
from vit22b_jax.fid import (
  distances,
  extractor,
  image_sources,
  inception_weights,
)
from vit22b_jax.modes import fid as fid_mode

KEYS = [
  *('fid', 'kid', 'kid_stderr', 'tap', 'resize', 'quantize', 'num_a', 'num_b'),
  *('weights_sha256', 'calibrated', 'seconds'),
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def folder(tmp_path):
  """Makes a folder of images; a size is of one or of each."""

  def make(name, count=5, sizes=((20, 24),), seed=0):
    rng = np.random.default_rng(seed)
    path = tmp_path / name
    (path / 'deeper').mkdir(parents=True)
    for i in range(count):
      pixels = rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8)
      where = path / 'deeper' if i % 2 else path
      Image.fromarray(pixels).save(where / f'{i}.png')
    return str(path)

  return make


def make_config(a, b, words='', **changes):
  config = config_file.get_config(words)
  config.a, config.b = str(a), str(b)
  config.fid.weights, config.fid.tap = 'random:0', 64
  config.fid.batch_size = 8
  with config.unlocked():
    config.update(changes)
  return config


def no_generator(path, direction):
  raise AssertionError('opened a generator')


def run(config, workdir=None, open_generator=no_generator):
  return fid_mode.run(config, workdir, open_generator)


def test_two_folders(folder, tmp_path, capsys):
  a, b = folder('a', 5), folder('b', 3, ((20, 24), (31, 17)), seed=1)
  result = run(make_config(a, b), tmp_path / 'out')
  assert list(result) == KEYS
  written = json.loads((tmp_path / 'out' / 'fid.json').read_text())
  assert written == result
  assert (result['num_a'], result['num_b']) == (5, 3)
  assert not result['calibrated']
  printed = capsys.readouterr().out
  assert 'uncalibrated' in printed
  assert f'FID {result["fid"]:.6g}' in printed
  # The same by hand; files in sorted order.
  features = extractor.Extractor(extractor.Settings('random:0', 64))
  statistics = [
    features.statistics(
      [{'image': [np.asarray(Image.open(f)) for f in walk.find_images(path)]}]
    )
    for path in map(epath.Path, (a, b))
  ]
  expected = distances.measure(*statistics)
  assert result['fid'] == pytest.approx(expected['fid'], rel=1e-4)
  assert result['kid'] == pytest.approx(expected['kid'], rel=1e-4)


def test_paper_words():
  config = config_file.get_config('paper')
  section = config.fid
  assert (section.tap, section.resize, section.quantize) == (
    64,
    'tf1',
    'truncate',
  )
  assert section.num == 'min'
  default = config_file.get_config().fid
  assert (default.tap, default.resize, default.num) == (2048, 'clean', 'all')
  with pytest.raises(ValueError, match="unknown word 'papers'"):
    config_file.get_config('papers')


def test_as_many_of_both_and_infinitely_many(folder):
  config = make_config(folder('a', 20), folder('b', 17, seed=1), 'paper')
  config.infinity = True
  result = run(config)
  assert [*result] == [*KEYS[:-1], 'fid_infinity', 'seconds']
  assert (result['num_a'], result['num_b']) == (17, 17)
  assert result['resize'] == 'tf1'
  assert np.isfinite(result['fid_infinity'])


def test_statistics_files_stand_for_images(folder, tmp_path, capsys):
  a, b = folder('a', 5), folder('b', 6, seed=1)
  config = make_config(a, b, save_statistics=True)
  result = run(config, tmp_path / 'out')
  assert 'random Inception weights, seed 0:' in capsys.readouterr().out
  files = [tmp_path / 'out' / f'{side}.npz' for side in 'ab']
  one = run(make_config(files[0], b))
  assert one['fid'] == pytest.approx(result['fid'], rel=1e-5)
  assert one['kid'] is one['kid_stderr'] is None
  config = make_config(*files)
  config.fid.weights = ''  # which aren't needed
  both = run(config)
  digest = result['weights_sha256'][:12]
  assert f'weights {digest}:' in capsys.readouterr().out
  assert both['fid'] == pytest.approx(result['fid'], rel=1e-5)
  for key in ('num_a', 'num_b', 'weights_sha256', 'calibrated'):
    assert both[key] == result[key], key


def of_others(path, seed=0):
  """A statistics file as pytorch-fid writes it: it tells of nothing else."""
  x = np.random.default_rng(seed).standard_normal((70, 64))
  np.savez(path, mu=x.mean(axis=0), sigma=np.cov(x, rowvar=False))
  return path


def test_files_of_others_are_of_unknown_weights(tmp_path, capsys, caplog):
  files = of_others(tmp_path / 'a.npz'), of_others(tmp_path / 'b.npz', 1)
  result = run(make_config(*files))
  assert result['weights_sha256'] is result['num_a'] is None
  assert not result['calibrated']
  assert 'unknown' in capsys.readouterr().out
  said = [r.getMessage() for r in caplog.records if 'does not say' in r.msg]
  assert [text.split(' does')[0] for text in said] == [*map(str, files)]
  assert all('its resize, quantize, weights_sha256: taken' in t for t in said)


def test_one_side_of_unknown_weights_is_not_calibrated(
  folder, tmp_path, capsys, caplog, monkeypatch
):
  # As if those weights were the public ones.
  _, digest = inception_weights.load('random:0', ('64',))
  monkeypatch.setattr(inception_weights, 'SHA256', digest)
  assert run(make_config(folder('b'), folder('c', seed=1)))['calibrated']
  other, out = of_others(tmp_path / 'a.npz'), tmp_path / 'out'
  config = make_config(other, tmp_path / 'b', save_statistics=True)
  capsys.readouterr()
  assert not run(config, out)['calibrated']
  assert 'uncalibrated' in capsys.readouterr().out
  assert 'resize=torch' in caplog.text
  # Saved again, it doesn't pretend to know more; ours still does.
  config = make_config(out / 'a.npz', out / 'b.npz')
  assert not run(config)['calibrated']
  assert run(make_config(out / 'b.npz', out / 'b.npz'))['calibrated']


def test_files_made_otherwise_are_refused(folder, tmp_path):
  b = folder('b')
  run(make_config(folder('a'), b, save_statistics=True), tmp_path / 'out')
  file = tmp_path / 'out' / 'a.npz'
  config = make_config(file, b)
  config.fid.resize = 'tf1'
  with pytest.raises(errors.UserError, match=r'with resize=clean.*resize=tf1'):
    run(config)
  config = make_config(file, b)
  config.fid.weights = 'random:5'
  with pytest.raises(errors.UserError, match=r'with weights_sha256=.*weights'):
    run(config)
  config = make_config(file, b)
  config.fid.tap = 192
  with pytest.raises(errors.UserError, match='of 64 features, expected 192'):
    run(config)


def test_a_split_of_a_tfds_set(folder, tmp_path):
  data_fixtures.make_tfds(
    tmp_path / 'tfds', counts={'train': 4, 'test': 3}, shape=(32, 32, 3)
  )
  config = make_config('tfds:cifar10:test', folder('b'))
  config.dir = str(tmp_path / 'tfds')
  assert run(config)['num_a'] == 3
  config.a = 'tfds:cifar10:testA'
  with pytest.raises(errors.UserError, match=r"'testA', only.*train, test"):
    run(config)


def test_the_generator_of_a_run(folder):
  asked = []

  def open_generator(path, direction):
    asked.append((path, direction))
    rng = np.random.default_rng(0)
    for count in (2, 1):
      image = rng.integers(0, 256, (2, 20, 24, 3), np.uint8)
      yield {'image': image, 'mask': np.arange(2) < count}

  config = make_config('runs/x:y:b2a', folder('b'))
  result = run(config, None, open_generator)
  assert asked == [('runs/x:y', 'b2a')]
  assert result['num_a'] == 3


def test_features_are_cached_until_anything_changes(folder, cache, monkeypatch):
  a, b = folder('a'), folder('b', seed=1)
  computed = []
  statistics = extractor.Extractor.statistics

  def counted(self, batches, **kwargs):
    computed.append(self.settings)
    return statistics(self, batches, **kwargs)

  monkeypatch.setattr(extractor.Extractor, 'statistics', counted)
  first = run(make_config(a, b))
  assert len(computed) == 2
  again = run(make_config(a, b))
  assert len(computed) == 2
  assert {**again, 'seconds': 0} == {**first, 'seconds': 0}
  changed = make_config(a, b)
  changed.fid.resize = 'torch'
  run(changed)
  assert len(computed) == 4  # another mode
  run(make_config(a, b))
  assert len(computed) == 4  # which left the first one's where it was
  Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(f'{a}/new.png')
  assert run(make_config(a, b))['num_a'] == 6
  assert len(computed) == 5  # other images in one of them


@pytest.mark.parametrize(
  'a, message',
  [
    ('', r'--config\.a= is missing.*a folder of images'),
    ('missing', r"no folder 'missing'; expected a folder"),
    ('tfds:cifar10', r"expected 'tfds:NAME:SPLIT'"),
    ('missing.npz', 'no statistics file missing.npz'),
    ('http://x/y', 'local disks and gs:// alone'),
  ],
)
def test_names_of_nothing(a, message, folder):
  with pytest.raises(errors.UserError, match=message):
    run(make_config(a, folder('b')))


def test_folders_without_images(folder, tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError, match='no image in the folder'):
    run(make_config(tmp_path / 'empty', folder('b')))
  with pytest.raises(errors.UserError, match=r'1 image.*2 at least'):
    run(make_config(folder('one', 1), folder('c')))


def test_unreadable_images_are_named(folder, tmp_path):
  a = folder('a')
  (tmp_path / 'a' / 'broken.png').write_bytes(b'no image')
  with pytest.raises(errors.UserError, match=r'broken\.png could not be read'):
    run(make_config(a, folder('b')))


def test_two_images_have_no_error_and_say_so(folder, tmp_path, capsys):
  config = make_config(folder('a', 2), folder('b', 2, seed=1))
  result = run(config, tmp_path / 'out')
  assert result['kid'] is not None and result['kid_stderr'] is None
  written = (tmp_path / 'out' / 'fid.json').read_text()
  assert 'NaN' not in written
  printed = capsys.readouterr().out
  assert 'without an error, which needs more than 2 images of each' in printed
  assert 'nan' not in printed


def test_a_set_is_0_from_itself(folder, capsys):
  a = folder('a', 7)
  assert run(make_config(a, a))['fid'] == 0
  assert 'FID 0,' in capsys.readouterr().out


def test_infinity_of_a_file_is_refused_before_any_feature(folder, monkeypatch):
  monkeypatch.setattr(extractor, 'Extractor', None)
  config = make_config(folder('a'), 'b.npz')
  config.infinity = True
  with pytest.raises(errors.UserError, match=r'b=b\.npz has their statistics'):
    run(config)


def test_every_process_gets_as_many_batches(folder, monkeypatch):
  source = image_sources.find(
    folder('a', 5), dir='', open_generator=no_generator
  )
  whole = [b for batch in source.batches(4) for b in images_of(batch)]
  monkeypatch.setattr(image_sources.jax, 'process_count', lambda: 2)
  parts = []
  for process in range(2):
    monkeypatch.setattr(image_sources.jax, 'process_index', lambda p=process: p)
    batches = list(source.batches(4))
    assert [len(batch['image']) for batch in batches] == [2, 2]
    parts.append([b for batch in batches for b in images_of(batch)])
  assert [len(part) for part in parts] == [3, 2]
  assert sorted(parts[0] + parts[1]) == sorted(whole)


def images_of(batch):
  return [
    image.tobytes()
    for image, valid in zip(batch['image'], batch['mask'], strict=True)
    if valid
  ]


def test_without_a_network_it_says_what_to_fetch(folder, monkeypatch):
  monkeypatch.setattr(
    inception_weights, 'URL', 'http://127.0.0.1:9/weights.pth'
  )
  config = make_config(folder('a'), folder('b'))
  config.fid.weights = ''
  with pytest.raises(errors.UserError, match='and put it at'):
    run(config)


def test_every_key_is_read(folder):
  reads = set()

  def recorded(values, prefix=''):
    class Section(dict):
      def __getitem__(self, key):
        reads.add(prefix + key)
        return super().__getitem__(key)

      __getattr__ = __getitem__

    return Section(
      {
        k: recorded(v, f'{k}.') if isinstance(v, dict) else v
        for k, v in values.items()
      }
    )

  values = make_config(folder('a'), folder('b')).to_dict()
  config = recorded(values)
  run(config, folder('out', 0))
  expected = {k for k in values if k != 'task'}
  expected |= {f'fid.{k}' for k in values['fid']}
  assert expected <= reads
