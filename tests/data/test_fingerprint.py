"""What a run remembers of its images, and how a change is told."""

import json
import shutil

import pytest

from tests.helpers import data_fixtures
from vit22b_jax.data import fingerprint, loader


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(tmp_path):
  counts = {'train': 7, 'test': 2}
  return data_fixtures.make_folder(tmp_path / 'data', counts=counts)


def marks(root, **options):
  """The fingerprint as it comes back from a file."""
  found = loader.load_classes(f'folder:{root}', image_size=8, **options)
  return json.loads(json.dumps(found.fingerprint))


def test_a_folder_is_told_class_by_class(root):
  found = marks(root)
  assert {part: int(mark.split()[0]) for part, mark in found.items()} == {
    **{f'train/{name}': 7 for name in ('bird', 'cat', 'dog')},
    **{f'test/{name}': 2 for name in ('bird', 'cat', 'dog')},
    'val (held out)': 2,
  }


def test_moved_copied_and_lazily_read_images_are_the_same(root, tmp_path):
  before = marks(root)
  assert marks(root, cache_max_gb=0) == before
  shutil.copytree(root, tmp_path / 'copy')
  root.rename(tmp_path / 'moved')
  for name in ('copy', 'moved'):
    assert fingerprint.compare(before, marks(tmp_path / name)) == []


def test_every_change_is_listed(root):
  before = marks(root)
  image = root / 'train' / 'cat' / '000.png'
  for number in range(5):
    shutil.copy(image, image.with_name(f'new{number}.png'))
  (root / 'train' / 'dog' / '006.png').rename(root / 'train' / 'dog' / '7.png')
  shutil.rmtree(root / 'test' / 'bird')
  found = fingerprint.compare(before, marks(root))
  assert found == [
    'test/bird: 2 images, now 0',
    'train/cat: 7 images, now 12',
    'train/dog: 7 images, now 7, but not the same (name or size)',
    'val (held out): 2 images, now 3',
  ]


def test_another_split_is_a_change(root):
  found = fingerprint.compare(marks(root), marks(root, seed=1))
  assert found == [
    'val (held out): 2 images, now 2, but not the same (name or size)'
  ]


def test_domains(tmp_path):
  root = data_fixtures.make_domains(tmp_path / 'dark2bright')
  before = loader.load_domains(f'folder:{root}', image_size=8).fingerprint
  assert {k: int(mark.split()[0]) for k, mark in before.items()} == {
    **data_fixtures.DOMAINS,
    'trainA (held out)': 2,
    'trainB (held out)': 4,
  }
  (root / 'testA' / '000.png').unlink()
  root = root.rename(tmp_path / 'other')
  after = loader.load_domains(f'folder:{root}', image_size=8).fingerprint
  found = fingerprint.compare(before, after)
  assert found == ['testA: 3 images, now 2']


def test_prepared_sets_may_move_too(tmp_path):
  for place in ('one', 'two'):
    data_fixtures.make_tfds(tmp_path / place, counts={'train': 60, 'test': 20})
  one, two = (
    loader.load_classes('cifar10', dir=str(tmp_path / p), image_size=32)
    for p in ('one', 'two')
  )
  assert {k: int(mark.split()[0]) for k, mark in one.fingerprint.items()} == {
    'train': 60,
    'test': 20,
    'val (held out)': 6,
  }
  assert fingerprint.compare(one.fingerprint, two.fingerprint) == []
