"""What a finished (or running) workdir is used for: evaluate, predict, export.

evaluate.finish(task, manager, run)        # the run's final evaluation
evaluate.predict(task, variables, files)   # rows of file, class, probability
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from vit22b_jax import checkpoint, errors, sharding, weights, workdir
from vit22b_jax.data import images as images_lib
from vit22b_jax.data import pipeline

EVAL = 'eval.json'
PREDICTIONS = 'predictions.npz'
_SAMPLES = 48  # images kept with their predictions, for the report


def scores(task: Any, path: epath.PathLike) -> dict[int, float]:
  """How good each evaluated step of a run is, more being better.

  Args:
    task: the run's task; names the metric.
    path: the run's folder, with its metrics.jsonl.
  """
  sign = 1 if task.best_mode == 'max' else -1
  text = workdir.read_text(path, workdir.METRICS) or ''
  rows = [json.loads(line) for line in text.split('\n')[:-1]]
  return {
    row['step']: sign * row[task.best_metric]
    for row in rows
    if task.best_metric in row
  }


def restore(
  task: Any, manager: checkpoint.Manager, which: str
) -> tuple[int, dict[str, Any], str]:
  """The weights to use: of the best checkpoint by validation, or of the last.

  Args:
    task: the run's task.
    manager: its checkpoints.
    which: 'best' or 'last'; without any validation 'best' is the last too.

  Returns:
    The checkpoint's step, the model's variables, and their kind ('params' or
    'ema').

  Raises:
    UserError: the workdir holds no checkpoint.
  """
  step = manager.best_step() if which == 'best' else None
  found = manager.restore(task.abstract_weights, step=step)
  if found is None:
    raise errors.UserError(
      f'There is no checkpoint in {manager.workdir}: train first, with '
      f'--config=... --workdir={manager.workdir}.'
    )
  return found.step, *task.variables(found.state)


def finish(
  task: Any,
  manager: checkpoint.Manager,
  run: workdir.Workdir,
  check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
  """Evaluates on the test part and writes eval.json and predictions.npz.

  A data set without a test part is evaluated on its validation part, and
  eval.json says so under `split`.

  Args:
    task: the run's task, with data.
    manager: the run's checkpoints.
    run: where the files go.
    check: called between batches; may raise to leave the evaluation.

  Returns:
    The content of eval.json: `split num_examples loss top1 top5 auroc step
    weights`.
  """
  step, variables, kind = restore(task, manager, task.config.eval.checkpoint)
  name = 'test' if task.data.test is not None else 'val'
  split = getattr(task.data, name)
  result = task.evaluate(variables, split, check)
  content = {
    'split': name,
    **result.values,
    'step': step,
    'weights': kind,
    'checkpoint': task.config.eval.checkpoint,
  }
  _write_predictions(task, split, result, run)
  run.write_json(EVAL, content)
  return content


def _write_predictions(task, split, result, run) -> None:
  """Some images with their predictions, and the confusion matrix of all."""
  count = len(task.class_names)
  confusion = np.zeros((count, count), np.int64)
  np.add.at(confusion, (result.labels, result.probabilities.argmax(axis=1)), 1)
  chosen = np.random.default_rng(0).permutation(len(result.labels))[:_SAMPLES]
  chosen.sort()
  out = io.BytesIO()
  np.savez_compressed(
    out,
    images=np.stack([split[int(result.indices[i])]['image'] for i in chosen]),
    labels=result.labels[chosen],
    probabilities=result.probabilities[chosen],
    confusion=confusion,
    class_names=np.array(task.class_names),
  )
  run.write_bytes(PREDICTIONS, out.getvalue())


def predict(
  task: Any, variables: Any, folder: epath.PathLike, top_k: int
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
  names = task.class_names
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
  task: Any, folder: epath.Path, unreadable: list[str]
) -> Iterator[tuple[list[str], jax.Array]]:
  """Names and decoded images, in full batches; the last is padded."""
  size = task.config.eval.batch_size or task.config.batch_size
  side = task.config.data.image_size
  files, images = [], []

  def placed():
    batch = np.zeros((size, side, side, 3), np.uint8)
    batch[: len(images)] = images
    return pipeline.place({'image': batch}, sharding.batch(task.mesh))['image']

  for path in images_lib.find(folder):
    try:
      images.append(images_lib.decode(path.read_bytes(), side))
    except (OSError, images_lib.CorruptImage):
      unreadable.append(str(path.relative_to(folder)))
      continue
    files.append(str(path.relative_to(folder)))
    if len(files) == size:
      yield files, placed()
      files, images = [], []
  if files:
    yield files, placed()


def export(task: Any, variables: Any, run: workdir.Workdir) -> epath.Path:
  """Writes model.safetensors under timm's names, and says where."""
  path = run.path / 'model.safetensors'
  weights.export(
    path,
    task.model,
    jax.device_get(variables['params']),
    {'class_names': ','.join(task.class_names)},
  )
  return path
