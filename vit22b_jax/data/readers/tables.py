"""`folder:PATH` with PATH/labels.csv: images that may be of several classes.

    file,bird,cat,split
    a.jpg,1,0,train
    b/c.jpg,1,1,test

A row for each image: its path below PATH or below its split's folder, and 0 or
1 for each class. Without `split`, the folder (`train`, `val` or `test`) tells
the split of an image; what lies in none of them is of train.
"""

import collections
import csv
import io
import os

import numpy as np
from absl import logging
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import encoded
from vit22b_jax.data.readers import walk as walk_lib

NAME = 'labels.csv'
_LAYOUT = (
  'expected a header file,CLASS,CLASS[,CLASS...][,split] and, for each image, '
  'its path and 0 or 1 for each class (without the file, folders are classes)'
)
_SPLITS = {
  name: s for s, names in encoded.SPLIT_NAMES.items() for name in names
}

# By file: the split, if it is told, and 0 or 1 for each class.
_Rows = dict[str, tuple[str | None, tuple[float, ...]]]


def find(root: epath.Path) -> tuple[dict[str, encoded.Files], tuple[str, ...]]:
  """Lists the images of a table by split, sorted, and names its classes.

  Raises:
    UserError: the table isn't of this form, or doesn't suit the images.
  """
  table = root / NAME
  names, rows = _read(table)
  paths = _paths(root, rows)
  parts = collections.defaultdict(list)
  for file, (split, values) in rows.items():
    split = split or _SPLITS.get(paths[file].split('/')[0], 'train')
    parts[split].append((paths[file], values))
  if 'train' not in parts:
    raise errors.UserError(f'{table} has no image of train; {_LAYOUT}.')
  found = {}
  for split in filter(parts.__contains__, encoded.SPLIT_NAMES):
    files, values = zip(*sorted(parts[split]), strict=True)
    labels = np.array(values, np.float32)
    found[split] = encoded.Files(os.fspath(root), [*files], labels)
  return found, names


def _read(table: epath.Path) -> tuple[tuple[str, ...], _Rows]:
  """Returns the names of the classes and the rows."""
  try:
    text = table.read_bytes().decode('utf-8-sig')  # GPath.read_text keeps a BOM
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{table} is no text in UTF-8: {error}.') from None
  lines = csv.DictReader(io.StringIO(text, newline=''))
  header = lines.fieldnames or []
  names = tuple(name for name in header if name not in ('file', 'split'))
  if 'file' not in header or len({*header}) < len(header) or len(names) < 2:
    raise errors.UserError(f'{table} has the columns {header}; {_LAYOUT}.')
  rows: _Rows = {}
  for line in lines:
    where = f'{table}, line {lines.line_num}'
    if None in line or None in line.values():
      raise errors.UserError(
        f'{where} has not {len(header)} columns; {_LAYOUT}.'
      )
    file, split = os.path.normpath(line['file']), line.get('split')
    if file in rows:
      raise errors.UserError(f'{where} names {file} again.')
    if split and split not in _SPLITS:
      raise errors.UserError(
        f'{where}: split {split!r} is not in {[*_SPLITS]}.'
      )
    wrong = [n for n in names if line[n].strip() not in ('0', '1')]
    if wrong:
      raise errors.UserError(
        f'{where} has {line[wrong[0]]!r} for {wrong[0]}, expected 0 or 1.'
      )
    values = tuple(float(line[name]) for name in names)
    rows[file] = _SPLITS[split] if split else None, values
  return names, rows


def _paths(root: epath.Path, rows: _Rows) -> dict[str, str]:
  """Finds the image of each row; logs images of which there is no row."""
  found, unknown = collections.defaultdict(list), []
  walk = walk_lib.Walk([root])
  images = walk.images(root)
  walk.ignored.pop('.csv', None)
  walk.log(root)
  for image in images:
    path = os.fspath(image.relative_to(root))
    top, _, below = path.partition('/')
    file = below if path not in rows and top in _SPLITS else path
    (found[file] if file in rows else unknown).append(path)
  if unknown:
    logging.warning(
      'left aside in %s: %d images of which %s has no row, such as %s',
      root,
      len(unknown),
      NAME,
      errors.printable(unknown[0]),
    )
  wrong = [file for file in rows if len(found[file]) != 1]
  if wrong:
    what = 'several images' if found[wrong[0]] else 'no image'
    raise errors.UserError(
      f'{len(wrong)} row(s) of {root / NAME} fit no image or several: '
      f'{wrong[0]} is {what} below {root}. Write paths as train/a.jpg.'
    )
  return {file: path for file, (path,) in found.items()}
