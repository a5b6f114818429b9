"""Sizes without images: what loading the same set in earnest would find."""

import pytest

from tests.helpers import data_fixtures
from vit22b_jax import errors
from vit22b_jax.data import catalog, loader


def sizes(data):
  parts = [getattr(data, part) for part in ('train', 'val', 'test')]
  if isinstance(data.train, catalog.Pair):
    parts = [part and (len(part.a), len(part.b)) for part in parts]
  else:
    parts = [part and len(part) for part in parts]
  return tuple(parts), tuple(data.names)


def test_digits():
  loaded = loader.load_classes('digits', image_size=8, val_fraction=0.13)
  assert sizes(catalog.count_classes('digits', val_fraction=0.13)) == sizes(
    loaded
  )


def test_folders_are_counted(tmp_path):
  data_fixtures.make_folder(tmp_path / 'a', counts={'train': 7, 'test': 2})
  data_fixtures.make_folder(tmp_path / 'b', counts={'train': 7, 'val': 3})
  for name in (f'folder:{tmp_path}/a', f'folder:{tmp_path}/b'):
    assert sizes(catalog.count_classes(name)) == sizes(
      loader.load_classes(name, image_size=13)
    )
  data_fixtures.make_domains(tmp_path / 'monet2photo')
  name = f'folder:{tmp_path}/monet2photo'
  loaded = loader.load_domains(name, image_size=13, val_fraction=0.2)
  assert sizes(catalog.count_domains(name, val_fraction=0.2)) == sizes(loaded)


def test_fruit_needs_no_pictures():
  counts, names = sizes(catalog.count_domains('fruit'))
  assert counts == ((360, 360), (40, 40), (64, 64))
  assert names == ('apple', 'orange')


def test_prepared_sets_are_read_by_their_metadata(tmp_path):
  data_fixtures.make_tfds(
    tmp_path, num_classes=7, counts={'train': 61, 'test': 13}
  )
  where = {'dir': str(tmp_path), 'val_fraction': 0.2}
  counts, names = sizes(catalog.count_classes('cifar10', **where))
  assert (
    counts == sizes(loader.load_classes('cifar10', image_size=32, **where))[0]
  )
  assert len(names) == 7
  assert catalog.count_classes('cifar10:3.0.2', **where).train is not None


def test_known_sets_need_not_be_there(tmp_path):
  where = {'dir': str(tmp_path)}
  counts, names = sizes(catalog.count_classes('imagenet2012', **where))
  assert counts == (1_281_167, 50_000, None)
  assert len(names) == 1000
  counts, names = sizes(catalog.count_classes('cifar100', **where))
  assert counts == (45_000, 5_000, 10_000)
  counts, names = sizes(catalog.count_domains('cycle_gan/monet2photo', **where))
  assert counts[0] == (1072 - 107, 6287 - 629)
  assert names == ('monet', 'photo')


def test_two_domains_never_have_one_name():
  assert catalog.domain_names('folder:data/day2night/') == ('day', 'night')
  assert catalog.domain_names('folder:data/face2face') == ('a', 'b')


def test_others_are_one_clear_message(tmp_path):
  where = {'dir': str(tmp_path)}
  with pytest.raises(errors.UserError, match=r"mean 'cifar100'.*|data\.dir"):
    catalog.count_classes('cifar1000', **where)
  with pytest.raises(errors.UserError, match='no train split'):
    catalog.count_classes('cycle_gan/apple2orange', **where)
  with pytest.raises(errors.UserError, match='no trainA and no trainB'):
    catalog.count_domains('cifar10', **where)
