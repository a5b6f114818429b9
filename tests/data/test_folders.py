"""Data folders as people have them: links, pipes, leftovers, odd names."""

import logging
import os
import shutil

import numpy as np
import pytest
from absl import logging as absl_logging
from etils import epath
from PIL import Image

from tests.helpers import data_fixtures
from vit22b_jax import errors
from vit22b_jax.data import loader
from vit22b_jax.data.readers import folders, walk


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(tmp_path):
  return data_fixtures.make_folder(tmp_path / 'data', counts={'train': 4})


@pytest.fixture
def said(caplog, monkeypatch):
  """Returns what has been logged as a warning so far."""
  monkeypatch.setattr(absl_logging.get_absl_logger(), 'propagate', True)
  caplog.set_level(logging.WARNING)
  return lambda: '\n'.join(record.getMessage() for record in caplog.records)


def load(root, **options):
  return loader.load_classes(f'folder:{root}', image_size=13, **options)


def counts(root):
  """Images by class and split."""
  found, _ = folders.find(str(root))
  return {k: np.bincount(v.labels()).tolist() for k, v in found.items()}


# Links and what is no file.


def test_links_to_parents_and_siblings_are_not_followed(root, said):
  (root / 'train' / 'bird' / 'up').symlink_to(root)
  (root / 'train' / 'cat' / 'here').symlink_to('.')
  (root / 'train' / 'dog' / 'other').symlink_to(root / 'train' / 'bird')
  assert counts(root) == {'train': [4, 4, 4]}
  assert '3 link to a folder that is read anyway' in said()


def test_links_to_other_folders_are_followed_once(root, tmp_path):
  store = data_fixtures.make_folder(tmp_path / 'store', counts={'more': 3})
  (root / 'train' / 'bird' / 'a').symlink_to(store / 'more' / 'bird')
  (root / 'train' / 'bird' / 'b').symlink_to(store / 'more' / 'bird')
  (root / 'train' / 'eagle').symlink_to(store / 'more' / 'cat')
  assert counts(root) == {'train': [7, 4, 4, 3]}


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_class_that_links_to_what_is_read_is_refused(root, tmp_path, split):
  emu = data_fixtures.make_folder(tmp_path / 'store') / 'train' / 'bird'
  (root / 'val').mkdir()
  (root / 'train' / 'emu').symlink_to(emu)
  target = {'train': emu, 'val': root / 'train' / 'cat'}[split]
  (root / split / 'fox').symlink_to(target)
  with pytest.raises(errors.UserError) as caught:
    counts(root)
  expected = f'{split}/fox is a link to {target}, which is read already: delete'
  assert expected in str(caught.value)


def test_links_that_lead_to_each_other_end(root, tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  one.mkdir()
  two.mkdir()
  (one / 'next').symlink_to(two)
  (two / 'next').symlink_to(one)
  shutil.copy(root / 'train' / 'cat' / '000.png', two / 'x.png')
  (root / 'train' / 'cat' / 'far').symlink_to(one)
  assert counts(root) == {'train': [4, 5, 4]}


def test_val_that_is_train_is_refused(root):
  (root / 'val').symlink_to(root / 'train')
  with pytest.raises(errors.UserError, match='links to one folder'):
    load(root)


def test_pipes_and_folders_that_look_like_images_are_none(root, said):
  os.mkfifo(root / 'train' / 'cat' / 'pipe.png')
  (root / 'train' / 'cat' / 'link.png').symlink_to('pipe.png')
  (root / 'train' / 'dog' / 'scan.2021.tif').mkdir()
  assert counts(root) == {'train': [4, 4, 4]}
  assert '2 pipe or device' in said()


def test_a_dangling_link_counts_as_corrupt(root):
  (root / 'train' / 'cat' / 'gone.png').symlink_to('nowhere')
  (root / 'train' / 'dog' / 'loop.png').symlink_to('loop.png')
  with pytest.raises(errors.UserError, match=r'2 corrupt image.*\n.*gone.png'):
    load(root)
  data = load(root, max_corrupt=2)
  assert len(data.train) + len(data.val) == 12


def test_a_folder_that_cannot_be_listed_counts_as_corrupt(root, monkeypatch):
  (root / 'train' / 'cat' / 'locked').mkdir()
  scandir = os.scandir

  def deny(path):
    if str(path).endswith('locked'):
      raise PermissionError(13, 'Permission denied')
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', deny)
  with pytest.raises(errors.UserError, match=r'1 corrupt image.*\n.*locked'):
    load(root)
  assert len(load(root, max_corrupt=1).train) == 11


# What is said.


def test_other_files_are_counted_and_heic_names_its_cure(root, said):
  for name in ('a.HEIC', 'b.heic', 'table.h5', 'video.mpg', 'notes.txt'):
    (root / 'train' / 'cat' / name).write_bytes(b'')
  assert counts(root) == {'train': [4, 4, 4]}
  for expected in ('1 .HEIC', '1 .heic', '1 .h5', '1 .txt', 'pillow-heif'):
    assert expected in said()


def test_a_class_without_an_image_says_what_it_holds(root):
  for image in (root / 'train' / 'cat').iterdir():
    image.rename(image.with_suffix('.heic'))
  with pytest.raises(
    errors.UserError, match=r'no image in .*cat; .*4 \.heic.*JPEG'
  ):
    counts(root)


@pytest.mark.parametrize('names', [('Train', 'Test'), ('training', 'testing')])
def test_parts_of_a_set_are_no_classes(root, names):
  shutil.copytree(root / 'train', root / names[1])
  (root / 'train').rename(root / names[0])
  with pytest.raises(errors.UserError, match=f'{names[0]}.*rename them to'):
    counts(root)


def test_a_relative_folder_is_sought_where_it_says(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match=f"no folder 'x' in {tmp_path}"):
    folders.find('x')


def test_loose_images_and_unknown_folders_are_said(root, said):
  shutil.copy(root / 'train' / 'cat' / '000.png', root / 'train' / 'x.png')
  (root / 'extra').mkdir()
  assert counts(root) == {'train': [4, 4, 4]}
  assert '1 images in train without a class folder' in said()
  assert 'the folders extra' in said()


@pytest.mark.parametrize('name', ['val', 'valid', 'validation', 'dev'])
def test_every_name_of_a_validation_part(root, name):
  data_fixtures.make_folder(root, counts={name: 2})
  assert counts(root) == {'train': [4, 4, 4], 'val': [2, 2, 2]}
  data = load(root)
  assert (len(data.train), len(data.val)) == (12, 6)


def test_two_validation_parts_are_refused(root):
  data_fixtures.make_folder(root, counts={'val': 2, 'valid': 2})
  with pytest.raises(errors.UserError, match='val and valid: keep one'):
    load(root)


def test_an_unlabeled_test_part_is_left_aside(root, said):
  (root / 'test').mkdir()
  shutil.copy(root / 'train' / 'cat' / '000.png', root / 'test' / 'x.png')
  assert load(root).test is None
  assert 'test has no class folders: left aside' in said()


def test_folders_of_operating_systems_are_no_classes(root):
  for name in ('__MACOSX', '.thumbnails', '@eaDir'):
    (root / 'train' / name).mkdir()
    (root / 'train' / 'cat' / name).mkdir()
    shutil.copy(
      root / 'train' / 'cat' / '000.png', root / 'train' / 'cat' / name
    )
  assert counts(root) == {'train': [4, 4, 4]}


def test_classes_without_a_train_folder(root, said):
  data = load(root / 'train', val_fraction=0.25)
  assert data.names == ('bird', 'cat', 'dog')
  assert (len(data.train), len(data.val), data.test) == (9, 3, None)
  assert 'has no train folder: its 3 folders are the classes' in said()


def test_two_domains_are_no_classes(tmp_path):
  root = data_fixtures.make_domains(tmp_path / 'a2b')
  with pytest.raises(errors.UserError, match=r'no train folder.*trainA'):
    load(root)


@pytest.mark.parametrize('cache_max_gb', [4, 0])
def test_one_image_in_every_class_leaves_nothing_to_validate(
  tmp_path, cache_max_gb
):
  root = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 1})
  with pytest.raises(errors.UserError, match='one image in each class'):
    load(root, cache_max_gb=cache_max_gb)


# Names.


def test_names_that_are_not_utf_8(root):
  cat = os.fsencode(root / 'train' / 'cat')
  os.rename(cat, os.path.join(os.path.dirname(cat), b'caf\xe9'))
  image = os.fsencode(root / 'train' / 'dog' / '000.png')
  os.rename(image, os.path.join(os.path.dirname(image), b'\xff\t.png'))
  data = load(root)
  assert data.names == ('bird', 'caf\\udce9', 'dog')
  assert len(data.train) + len(data.val) == 12
  found = folders.find(str(root))[0]['train']
  names = [found.name(row) for row in range(len(found))]
  assert all(name.isprintable() for name in names)
  assert any(name.endswith('dog/\\udcff\\t.png') for name in names)
  assert all(found.read(row)[0] for row in range(len(found)))


def test_find_images_is_sorted_and_deep(tmp_path):
  for name in ('b/1.png', 'a.jpg', 'b/0/2.PNG', '.hidden/3.png', 'c.txt'):
    path = tmp_path / 'x' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (2, 2)).save(path, 'PNG')
  found = walk.find_images(epath.Path(tmp_path / 'x'))
  names = [str(path.relative_to(tmp_path / 'x')) for path in found]
  assert names == ['a.jpg', 'b/0/2.PNG', 'b/1.png']
