"""`--mode=predict`: a classifier's classes for a folder of images, as CSV.

text, notes = predict.run(task, variables, folder, top_k)
"""

import csv
import functools
import io
import itertools
import re
from typing import Any

import jax
import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import decode
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
    task: needs no data.
    variables: the model's.
    given: a folder, searched through in sorted order, or an image file.
    top_k: rows an image, most probable first.

  Returns:
    CSV text with the columns file, class, probability, where a spreadsheet
    finds no formula: a file's name gets `./` before it, a class's name `'`;
    and a line for each file that could not be read.

  Raises:
    UserError: there is no readable image, or `top_k` isn't between 1 and the
      number of classes.
  """
  names, size = task.names, task.evaluator.batch_size
  if not 1 <= top_k <= len(names):
    raise errors.UserError(
      f'--top_k={top_k}: expected 1 to {len(names)}, the number of classes.'
    )
  folder, files = inputs.find(given)
  data, notes = task.config.data, []
  square = functools.partial(
    decode.square, image_size=data.load_size or data.image_size
  )
  images = inputs.decoded(folder, files, square, notes)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['file', 'class', 'probability'])
  while batch := list(itertools.islice(images, size)):
    padded = np.stack([image for _, image in batch])
    padded = np.pad(padded, ((0, size - len(batch)), *((0, 0),) * 3))
    placed = jax.device_put(padded, sharding.batch_sharding(task.mesh))
    probabilities = np.asarray(task.evaluator.predict(variables, placed))
    for (file, _), row in zip(batch, probabilities, strict=False):
      for i in np.argsort(-row, kind='stable')[:top_k]:
        cells = _cell(file, './'), _cell(names[i], "'")
        writer.writerow([*cells, f'{row[i]:.6f}'])
  if len(notes) == len(files):
    raise inputs.no_image(given, notes)
  return out.getvalue(), notes


def _cell(text: str, mark: str) -> str:
  return f'{mark}{text}' if _FORMULA.match(text) else text
