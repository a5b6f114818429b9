"""`--mode=predict`: a classifier's classes for a folder of images, as CSV.

text, unreadable = predict.predict(task, variables, folder, top_k)
"""

import csv
import io
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import decode, devices
from vit22b_jax.data.readers import walk
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import classification


def predict(
  task: classification.Classification,
  variables: Any,
  folder: epath.PathLike,
  top_k: int,
) -> tuple[str, list[str]]:
  """Classifies every readable image below a folder.

  Args:
    task: the run's task; needs no data.
    variables: the model's variables.
    folder: searched through, in sorted order.
    top_k: rows an image, most probable first.

  Returns:
    CSV text with the columns file, class, probability; and the files that
    could not be read.

  Raises:
    UserError: the folder is missing or has no readable image, or `top_k` isn't
      between 1 and the number of classes.
  """
  names = task.names
  if not 1 <= top_k <= len(names):
    raise errors.UserError(
      f'--top_k={top_k}: expected 1 to {len(names)}, the number of classes.'
    )
  folder = epath.Path(folder)
  if not folder.is_dir():
    raise errors.UserError(f'--input={folder} is not a folder of images.')
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['file', 'class', 'probability'])
  unreadable = []
  rows = 0
  for files, images in _batches(task, folder, unreadable):
    rows += len(files)
    found = task.predict(variables, images)[: len(files)]  # the rest pads
    for file, row in zip(files, np.asarray(found), strict=True):
      for i in np.argsort(-row, kind='stable')[:top_k]:
        writer.writerow([file, names[i], f'{row[i]:.6f}'])
  if not rows:
    raise errors.UserError(
      f'--input={folder} holds no readable image ({len(unreadable)} files that '
      'could not be read).'
    )
  return out.getvalue(), unreadable


def _batches(
  task: classification.Classification, folder: epath.Path, unreadable: list[str]
) -> Iterator[tuple[list[str], jax.Array]]:
  """Names and decoded images, in full batches; the last is padded."""
  size = task.eval_batch_size
  side = task.config.data.image_size
  files, images = [], []

  def placed():
    batch = np.zeros((size, side, side, 3), np.uint8)
    batch[: len(images)] = images
    return devices.place({'image': batch}, sharding.batch(task.mesh))['image']

  for path in walk.find_images(folder):
    try:
      images.append(decode.square(path.read_bytes(), side))
    except (OSError, decode.CorruptImage):
      unreadable.append(str(path.relative_to(folder)))
      continue
    files.append(str(path.relative_to(folder)))
    if len(files) == size:
      yield files, placed()
      files, images = [], []
  if files:
    yield files, placed()
