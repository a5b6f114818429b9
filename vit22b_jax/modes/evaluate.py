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
  evaluator: evaluators.Evaluator, values: Mapping[str, float]
) -> Score:
  """Returns how good validated weights are, more being better.

  Args:
    evaluator: names the metric.
    values: a row of metrics.jsonl.

  Returns:
    The metric, and minus the validation loss for those that it doesn't tell
    apart.
  """
  sign = 1 if evaluator.best_mode == 'max' else -1
  loss = values.get('val/loss', 0.0)
  return sign * float(values[evaluator.best_metric]), -float(loss)


def scores(
  evaluator: evaluators.Evaluator, path: epath.PathLike
) -> dict[int, Score]:
  """Reads the score of each validated step of a run from metrics.jsonl.

  Args:
    evaluator: names the metric.
    path: the run's folder.
  """
  return {
    row['step']: score(evaluator, row)
    for row in runs.read_metrics(path)
    if evaluator.best_metric in row and ranks(evaluator, row)
  }


def ranks(evaluator: evaluators.Evaluator, values: Mapping[str, float]) -> bool:
  """Returns whether a validation was of enough images to choose weights by."""
  return values.get('val/num_images', math.inf) >= evaluator.min_images


def record(
  task: base.Task,
  folder: workdir.Workdir,
  step: int,
  found: Mapping[str, float],
  scores: dict[int, Score],
) -> bool:
  """Adds a validation to metrics.jsonl and to the scores, and prints it.

  Args:
    task: the run's.
    folder: the run's.
    step: whose weights were validated.
    found: names and values.
    scores: of the earlier validations.

  Returns:
    Whether no earlier step was as good.
  """
  values = {f'val/{name}': value for name, value in found.items()}
  folder.metrics(step, {'epoch': step / task.steps_per_epoch, **values})
  folder.flush()
  improved = False
  if ranks(task.evaluator, values):
    new = score(task.evaluator, values)
    improved = all(new > old for old in scores.values())
    scores[step] = new
  best = ' (best so far)' if improved else ''
  if 'num_images' in found:
    found = dict(found)
    best = f' (of {found.pop("num_images")} images, too few to choose by)'
  shown = ', '.join(f'{name} {value:.4f}' for name, value in found.items())
  console.say(f'step {step}  validation: {shown}{task.evaluator.note}{best}')
  return improved


def out_of_patience(scores: Mapping[int, Score], patience: int) -> bool:
  """Returns whether the last `patience` validations brought nothing better.

  Args:
    scores: of all validated steps.
    patience: 0 for no end of it.
  """
  if not patience or not scores:
    return False
  best = max(scores, key=lambda step: (scores[step], -step))
  return sum(step > best for step in scores) >= patience


def restore(
  task: base.Task, manager: checkpoint.Manager, which: str
) -> tuple[int, dict[str, Any], str]:
  """Restores the weights of the best checkpoint by validation, or of the last.

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


def finish(
  task: base.Task,
  manager: checkpoint.Manager,
  folder: workdir.Workdir,
  poll: evaluators.Poll = evaluators.ignore,
) -> dict[str, Any]:
  """Evaluates on the test part and writes eval.json.

  Args:
    task: the run's task, with data.
    manager: the run's checkpoints.
    folder: where the files go.
    poll: called between batches; may raise to leave the evaluation.

  Returns:
    The content of eval.json: what the evaluator's `test` gives, and `step
    weights checkpoint`, with `checkpoint_note` if no best one can be chosen.
  """
  which, least = task.config.eval.checkpoint, task.evaluator.min_images
  best = distributed.broadcast_json(manager.best_step())
  note = {}
  if which == 'best' and best is None:
    which = 'last'
  if which != task.config.eval.checkpoint and not task.evaluator.missing:
    text = f'The best is chosen by a validation of at least {least} images.'
    note = {'checkpoint_note': text}
    console.say(f'No checkpoint is the best: the last one is used. {text}')
  wanted = best if which == 'best' else manager.latest_step()
  wanted = distributed.broadcast_json(wanted)
  step, variables, kind = restore(task, manager, which)
  content = {
    **task.evaluator.test(variables, folder, poll),
    'step': step,
    'weights': kind,
    'checkpoint': which if step == wanted else f'another than the {which}',
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
