"""Classes of images as CSV: names of every kind, one file, what isn't read.

The classifier says how red an image is: rows can be told from pixels.
"""

import csv
import io
import os
import types

import jax
import numpy as np
import pytest
from PIL import Image

from vit22b_jax import errors
from vit22b_jax.modes import predict
from vit22b_jax.runtime import sharding

NAMES = ['red', '=other', '-1']


def task():
  """Returns what `predict` needs of a classification, on one device."""

  def classify(variables, images):
    red = np.asarray(images, np.float64)[..., 0].mean((1, 2)) / 255
    return np.stack([red, 0.75 * (1 - red), 0.25 * (1 - red)], axis=1)

  data = types.SimpleNamespace(image_size=4, load_size=None)
  return types.SimpleNamespace(
    names=NAMES,
    evaluator=types.SimpleNamespace(batch_size=2, predict=classify),
    mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    config=types.SimpleNamespace(data=data),
  )


def save(path, red):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((4, 4, 3), red, np.uint8)).save(path)


def rows(text):
  return list(csv.DictReader(io.StringIO(text)))


def test_rows_are_in_the_order_of_files_and_probabilities(tmp_path):
  for i, name in enumerate(('a.png', 'b/c.png', 'd.png')):
    save(tmp_path / name, 51 * i)
  text, notes = predict.run(task(), {}, tmp_path, 2)
  assert notes == []
  assert [tuple(row.values()) for row in rows(text)] == [
    ('a.png', "'=other", '0.750000'),
    ('a.png', '-1', '0.250000'),
    ('b/c.png', "'=other", '0.600000'),
    ('b/c.png', 'red', '0.200000'),
    ('d.png', "'=other", '0.450000'),
    ('d.png', 'red', '0.400000'),
  ]


def test_a_spreadsheet_finds_no_formula_and_paths_stay_paths(tmp_path):
  names = ['=1+1.png', '+x.png', '-x.png', '@x.png', 'a=b.png', 'x,"y.png']
  for name in names:
    save(tmp_path / name, 255)
  text, _ = predict.run(task(), {}, tmp_path, 1)
  found = [row['file'] for row in rows(text)]
  assert not [name for name in found if name[0] in '=+-@']
  assert sorted(os.path.normpath(name) for name in found) == sorted(names)


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
  save(tmp_path / os.fsdecode(b'caf\xe9.png'), 255)
  text, _ = predict.run(task(), {}, tmp_path, 1)
  assert b'caf\xe9.png,red' in text.encode(errors='surrogateescape')


def test_one_file_is_an_input_too(tmp_path):
  save(tmp_path / 'photo.png', 255)
  save(tmp_path / 'other.png', 255)
  text, _ = predict.run(task(), {}, tmp_path / 'photo.png', 1)
  assert [row['file'] for row in rows(text)] == ['photo.png']


def test_mistakes(tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'nothing')
  for given, top_k, message in (
    (tmp_path, 1, r'no readable image:\n  bad.png could not be read \(no'),
    (
      tmp_path / 'bad.png',
      1,
      r'no readable image:\n  bad.png could not be read \(no',
    ),
    (tmp_path / 'missing', 1, 'missing is not a folder of images and not a f'),
    ('s3://b/photos', 1, 'local disks and gs:// alone'),
    (tmp_path, 0, 'top_k=0: expected 1 to 3'),
    (tmp_path, 4, 'top_k=4: expected 1 to 3'),
  ):
    with pytest.raises(errors.UserError, match=message):
      predict.run(task(), {}, given, top_k)
