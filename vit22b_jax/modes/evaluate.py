"""Which weights of a run are used, and its final evaluation.

step, variables, kind = evaluate.restore(task, manager, 'best')
evaluate.finish(task, manager, run)   # writes eval.json
"""

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from vit22b_jax import errors
from vit22b_jax.runtime import checkpoint, distributed, workdir
from vit22b_jax.tasks import base


def scores(task: base.Task, path: epath.PathLike) -> dict[int, float]:
  """How good each evaluated step of a run is, more being better.

  Args:
    task: the run's task; names the metric.
    path: the run's folder, with its metrics.jsonl.
  """
  sign = 1 if task.best_mode == 'max' else -1
  text = workdir.read_text(path, workdir.METRICS) or ''
  rows = [json.loads(line) for line in text.split('\n')[:-1]]
  return {
    row['step']: sign * float(row[task.best_metric])
    for row in rows
    if task.best_metric in row
  }


def restore(
  task: base.Task, manager: checkpoint.Manager, which: str
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
  run: workdir.Workdir,
  check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
  """Evaluates on the test part and writes eval.json.

  Args:
    task: the run's task, with data.
    manager: the run's checkpoints.
    run: where the files go.
    check: called between batches; may raise to leave the evaluation.

  Returns:
    The content of eval.json: what the task's `final` gives, and `step weights
    checkpoint`.
  """
  which = task.config.eval.checkpoint
  wanted = manager.best_step() if which == 'best' else None
  wanted = distributed.broadcast_json(wanted or manager.latest_step())
  step, variables, kind = restore(task, manager, which)
  content = {
    **task.final(variables, run, check),
    'step': step,
    'weights': kind,
    'checkpoint': which if step == wanted else f'another than the {which}',
  }
  run.write_json(workdir.EVAL, content)
  return content
