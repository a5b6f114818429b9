"""Images of several classes: a table beside a folder of images."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers import data_fixtures
from vit22b_jax import errors
from vit22b_jax.data import catalog, fingerprint, loader, pipeline

FILES = ('a.png', 'b/c.png', 'd.png', 'e.png', 'f.png', 'g.png', 'h.png')
LABELS = ('1,0,1', '0,0,0', '1,1,1', '0,1,0', '0,0,1', '1,0,0', '0,1,1')


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path / 'cache'))


def write(root, rows, header='file,bird,cat,dog'):
  (root / 'labels.csv').write_text('\n'.join([header, *rows]) + '\n')


@pytest.fixture
def root(tmp_path):
  """train/FILES, gray levels 10, 11, ..., each with a row in labels.csv."""
  root = tmp_path / 'data'
  for number, file in enumerate(FILES):
    path = root / 'train' / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (9, 9), (10 + number,) * 3).save(path)
  write(root, [f'{f},{v}' for f, v in zip(FILES, LABELS, strict=True)])
  return root


def load(root, **options):
  return loader.load_classes(f'folder:{root}', **({'image_size': 9} | options))


def vectors(split):
  """The labels of each image by its gray level, as in LABELS."""
  return {
    int(split[i]['image'][0, 0, 0]) - 10: ','.join(
      str(int(x)) for x in split[i]['label']
    )
    for i in range(len(split))
  }


def test_a_table_of_a_spreadsheet_is_read(root):
  """Excel's "CSV UTF-8" begins with a byte order mark and ends lines by two."""
  table = root / 'labels.csv'
  text = table.read_bytes().replace(b'\n', b'\r\n')
  table.write_bytes(b'\xef\xbb\xbf' + text)
  assert load(root).names == ('bird', 'cat', 'dog')


@pytest.mark.parametrize('cache_max_gb', [4, 0], ids=['memory', 'lazy'])
def test_labels_stay_with_their_images(root, cache_max_gb):
  for _ in range(2):  # decoded, then from the cache
    data = load(root, cache_max_gb=cache_max_gb, val_fraction=0.3)
    assert data.multi_label and data.names == ('bird', 'cat', 'dog')
    assert (len(data.train), len(data.val), data.test) == (5, 2, None)
    assert data.train.labels.shape == (5, 3)
    found = vectors(data.train) | vectors(data.val)
    assert found == dict(enumerate(LABELS))
  batch = next(pipeline.train_iterator(data.train, batch_size=4, seed=0))
  assert batch['label'].shape == (4, 3)
  assert batch['label'].dtype == np.float32
  counted = catalog.count_classes(f'folder:{root}', val_fraction=0.3)
  assert counted.multi_label and len(counted.train) == 5


def test_folders_or_a_column_tell_the_split(root):
  for split in ('val', 'test'):
    (root / split).mkdir()
  (root / 'train' / 'g.png').rename(root / 'val' / 'g.png')
  (root / 'train' / 'h.png').rename(root / 'test' / 'h.png')
  expected = [dict(enumerate(LABELS[:5])), {5: LABELS[5]}, {6: LABELS[6]}]

  def found():
    data = load(root)
    return [vectors(part) for part in (data.train, data.val, data.test)]

  assert found() == expected
  for file in root.glob('*/*.png'):
    file.rename(root / file.name)
  splits = ['train'] * 5 + ['valid', 'test']
  files = ['a.png', 'train/b/c.png', *FILES[2:]]
  rows = zip(files, LABELS, splits, strict=True)
  write(root, map(','.join, rows), 'file,bird,cat,dog,split')
  assert found() == expected


def test_images_without_a_row_are_left_aside(root):
  rows = [f'train/{f},{v}' for f, v in zip(FILES, LABELS, strict=True)]
  write(root, rows[1:])
  assert len(load(root).train) + len(load(root).val) == 6


def test_other_labels_are_other_data(root):
  before = load(root).fingerprint
  rows = [f'{f},{v}' for f, v in zip(FILES, LABELS, strict=True)]
  write(root, [rows[0].replace('1,0,1', '1,1,1'), *rows[1:]])
  after = json.loads(json.dumps(load(root).fingerprint))
  (line,) = fingerprint.compare(before, after)
  assert line.startswith('train: 7 images, now 7, but not the same')
  found = load(root)
  assert (vectors(found.train) | vectors(found.val))[0] == '1,1,1'


@pytest.mark.parametrize(
  ('header', 'rows', 'message'),
  [
    ('image,bird,cat', ['a.png,1,0'], r"columns \['image'.*expected a header"),
    ('file,bird', ['a.png,1'], 'columns .*expected a header'),
    ('file,cat,cat', ['a.png,1,0'], 'columns .*expected a header'),
    ('file,bird,cat', ['a.png,1'], 'line 2 has not 3 columns'),
    ('file,bird,cat', ['a.png,1,0', 'a.png,1,0'], 'line 3 names a.png again'),
    ('file,bird,cat', ['a.png,1,yes'], "'yes' for cat, expected 0 or 1"),
    ('file,bird,cat', ['x.png,1,0'], 'x.png is no image below'),
    ('file,bird,cat,split', ['a.png,1,0,dev2'], "split 'dev2' is not in"),
    ('file,bird,cat,split', ['a.png,1,0,test'], 'no image of train'),
  ],
)
def test_mistakes_in_tables(root, header, rows, message):
  write(root, rows, header)
  with pytest.raises(errors.UserError, match=message):
    load(root)


def test_a_name_of_two_images_is_a_mistake(root):
  data_fixtures.make_folder(root, counts={'val': 1})
  Image.new('RGB', (9, 9)).save(root / 'val' / 'a.png')
  with pytest.raises(errors.UserError, match=r'a\.png is several images'):
    load(root)


def test_a_table_must_be_utf_8(root):
  (root / 'labels.csv').write_bytes(b'file,caf\xe9,cat\na.png,1,0\n')
  with pytest.raises(errors.UserError, match='no text in UTF-8'):
    load(root)
