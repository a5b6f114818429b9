"""`--mode=predict`: a classifier's classes for a folder of images, as CSV.

text, unreadable = predict.run(task, variables, folder, top_k)
"""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import decode, devices
from vit22b_jax.modes import inputs
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification

# What a spreadsheet would run as a formula, numbers apart.
_FORMULA = re.compile(r'[=@\t\r]|[+-](?![\d.]+$)')


def run(
  task: classification.Classification,
  variables: Any,
  given: epath.PathLike,
  top_k: int,
) -> tuple[str, list[str]]:
  """Classifies every readable image of a folder, or one file.

  Args:
    task: the run's task; needs no data.
    variables: the model's variables.
    given: a folder, searched through in sorted order, or an image file.
    top_k: rows an image, most probable first.

  Returns:
    CSV text with the columns file, class, probability, where a spreadsheet
    finds no formula: a file's name gets `./` before it, a class's name `'`;
    and the files that could not be read.

  Raises:
    UserError: there is no readable image, or `top_k` isn't between 1 and the
      number of classes.
  """
  names = task.names
  if not 1 <= top_k <= len(names):
    raise errors.UserError(
      f'--top_k={top_k}: expected 1 to {len(names)}, the number of classes.'
    )
  folder, files = inputs.find(given)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['file', 'class', 'probability'])
  unreadable: list[str] = []
  rows = 0
  contents = inputs.read(folder, files, unreadable)
  for found, images in _batches(task, contents, unreadable):
    rows += len(found)
    probabilities = np.asarray(task.evaluator.predict(variables, images))
    for file, row in zip(found, probabilities, strict=False):  # the rest pads
      for i in np.argsort(-row, kind='stable')[:top_k]:
        cells = _cell(file, './'), _cell(names[i], "'")
        writer.writerow([*cells, f'{row[i]:.6f}'])
  if not rows:
    raise inputs.no_image(given, unreadable)
  return out.getvalue(), unreadable


def _cell(text: str, mark: str) -> str:
  return f'{mark}{text}' if _FORMULA.match(text) else text


def _batches(
  task: classification.Classification,
  contents: Iterator[tuple[str, bytes]],
  unreadable: list[str],
) -> Iterator[tuple[list[str], jax.Array]]:
  """Yields names and decoded images in full batches; the last is padded."""
  size, data = task.evaluator.batch_size, task.config.data
  side = data.load_size or data.image_size
  files, images = [], []

  def place():
    batch = np.zeros((size, side, side, 3), np.uint8)
    batch[: len(images)] = images
    return devices.place({'image': batch}, sharding.batch_sharding(task.mesh))[
      'image'
    ]

  for name, content in contents:
    try:
      images.append(decode.square(content, side))
    except decode.CorruptImage:
      unreadable.append(name)
      continue
    files.append(name)
    if len(files) == size:
      yield files, place()
      files, images = [], []
  if files:
    yield files, place()
