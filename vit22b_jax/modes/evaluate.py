"""Chooses which weights of a run are used, and evaluates them at the end.

step, variables, kind = evaluate.restore(task, manager, 'best')
evaluate.finish(task, manager, folder)   # writes eval.json
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from vit22b_jax import errors, report
from vit22b_jax.runtime import checkpoint, console, distributed, runs, workdir
from vit22b_jax.tasks import base, evaluators

Score = tuple[float, float]  # see `score`


def score(
  evaluator: evaluators.Evaluator, row: Mapping[str, float]
) -> Score | None:
  """Returns how good the weights of a row of metrics.jsonl are.

  More is better: the evaluator's metric, then minus the validation loss for
  those that it doesn't tell apart; what isn't a number is the worst. None for a
  row that isn't of a validation, or of one with too few images to choose by.
  """
  metric = next((m for m in evaluator.best_metrics if m in row), None)
  count = row.get('val/num_images', math.inf)
  if metric is None or count < evaluator.min_images:
    return None
  sign = 1 if evaluator.best_mode == 'max' else -1
  values = sign * float(row[metric]), -row.get('val/loss', 0.0)
  return tuple(-math.inf if math.isnan(value) else value for value in values)


def scores(
  evaluator: evaluators.Evaluator, path: epath.PathLike
) -> dict[int, Score]:
  """Reads the score of each validated step of a run from metrics.jsonl."""
  return {
    row['step']: found
    for row in runs.read_metrics(path)
    if (found := score(evaluator, row))
  }


def record(
  task: base.Task,
  folder: workdir.Workdir,
  step: int,
  found: Mapping[str, float],
  scores: dict[int, Score],
) -> bool:
  """Adds a validation to metrics.jsonl and to `scores`, and prints it.

  Returns:
    Whether no earlier step was as good.
  """
  values = {f'val/{name}': value for name, value in found.items()}
  folder.metrics(step, {'epoch': step / task.steps_per_epoch, **values})
  folder.flush()
  new, note = score(task.evaluator, values), ''
  improved = new is not None and all(new > old for old in scores.values())
  if new is not None:
    scores[step] = new
  if improved:
    note = ' (best so far)'
  if 'num_images' in found:
    note = f' (of {found["num_images"]} images, too few to choose by)'
  shown = ', '.join(
    f'{name} {value:.4f}'
    for name, value in found.items()
    if name != 'num_images'
  )
  console.say(f'step {step}  validation: {shown}{task.evaluator.note}{note}')
  return improved


def out_of_patience(scores: Mapping[int, Score], patience: int) -> bool:
  """Returns whether the last `patience` validations brought nothing better.

  A patience of 0 never ends.
  """
  if not patience or not scores:
    return False
  best = max(scores, key=lambda step: (scores[step], -step))
  return sum(step > best for step in scores) >= patience


def restore(
  task: base.Task, manager: checkpoint.Manager, which: str
) -> tuple[int, dict[str, Any], str]:
  """Restores the weights of the 'best' checkpoint by validation, or the 'last'.

  Without any validation 'best' is the last too.

  Returns:
    The checkpoint's step, the model's variables, and 'params' or 'ema'.

  Raises:
    UserError: the workdir holds no checkpoint.
  """
  step = distributed.broadcast_json(
    manager.best_step() if which == 'best' else None
  )
  found = manager.restore(task.abstract_weights, step=step)
  if found is None:
    raise errors.UserError(
      f'There is no checkpoint in {manager.workdir}: train first, with '
      f'--config=... --workdir={manager.workdir}.'
    )
  return found.step, *task.variables(found.state)


def chosen_step(task: base.Task, path: epath.PathLike) -> int | None:
  """Returns the step of the checkpoint that another run is used with.

  None stands for its newest, and for what is no workdir.
  """
  path, step = epath.Path(path).expanduser(), None
  config = runs.find_config(path) if path.is_dir() else None
  if config is not None and config.eval.checkpoint == 'best':
    known = scores(task.evaluator, path)
    manager = checkpoint.Manager(path, scores=known, read_only=True)
    step = manager.best_step()
    manager.close()
  return distributed.broadcast_json(step)


def finish(
  task: base.Task, manager: checkpoint.Manager, folder: workdir.Workdir
) -> dict[str, Any]:
  """Evaluates on the test part; returns what it writes into eval.json.

  That is what the evaluator's `test` gives, and `data step weights checkpoint`,
  with `checkpoint_note` if the best one can't be used.
  """
  which, note = task.config.eval.checkpoint, {}
  steps = {'best': manager.best_step(), 'last': manager.latest_step()}
  steps = distributed.broadcast_json(steps)
  if steps[which] is None:
    which = 'last'
    if not task.evaluator.missing:
      least = task.evaluator.min_images
      text = f'The best is chosen by a validation of at least {least} images.'
      note = {'checkpoint_note': text}
      console.say(f'No checkpoint is the best: the last one is used. {text}')
  step, variables, kind = restore(task, manager, which)
  used = which if step == steps[which] else f'another than the {which}'
  if used == 'best' and not manager.is_best(step):
    used = 'another than the best'
    text = 'The best validation is of a step whose checkpoint is gone.'
    note = {'checkpoint_note': text}
    console.say(f'The best checkpoint that is left is used. {text}')
  content = {
    **task.evaluator.test(variables, folder),
    'data': task.config.data.name,
    'step': step,
    'weights': kind,
    'checkpoint': used,
    **note,
  }
  folder.write_json(workdir.EVAL, content)
  return content


def write_report(folder: workdir.Workdir) -> None:
  """Writes report.html, once there is a step to tell of, and says where.

  A report that can't be written is a warning: it ends nothing.
  """
  if (
    jax.process_index() > 0 or not (folder.path / workdir.DIAGNOSTICS).exists()
  ):
    return
  try:
    console.say(f'Report: {report.write(folder.path)}')
  except errors.UserError as error:
    print(f'warning: {error}', file=sys.stderr)
