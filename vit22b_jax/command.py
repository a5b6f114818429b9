"""The command line's modes, after its flags are parsed.

code = command.run('train', config=config, workdir='runs/x')
"""

import sys
from typing import Any

import jax
from etils import epath

from vit22b_jax import (
  api,
  configuration,
  console,
  errors,
  evaluate,
  predict,
  sharding,
  tasks,
  train,
)
from vit22b_jax import (
  workdir as workdir_lib,
)


def run(
  mode: str,
  *,
  config: Any | None,
  workdir: str | None,
  input_folder: str | None = None,
  top_k: int = 1,
) -> int:
  """Runs one mode of the command line.

  Args:
    mode: 'train', 'eval', 'predict' or 'export'.
    config: the run's configuration; may be left out where the workdir has one.
    workdir: the run's folder.
    input_folder: predict: the images.
    top_k: predict: classes for each image.

  Returns:
    The process's exit code.

  Raises:
    UserError: something is missing or doesn't fit; the message says what.
    TrainingStopped: see `train.run`.
  """
  if workdir is None:
    raise errors.UserError(
      'Give --config=FILE, such as configs/digits_vit22b_ti.py, or the '
      '--workdir of a run (with --mode=eval, predict or export). '
      'python main.py --help tells more.'
    )
  if config is not None:
    check(config)
  if mode == 'train':
    if config is None:
      config = _saved_config(workdir)
    return train.run(config, workdir, make_mesh(config))
  if mode == 'predict' and not input_folder:
    raise errors.UserError('--mode=predict needs --input=FOLDER of images.')
  return _use(mode, workdir, config, input_folder, top_k)


def check(config: Any) -> None:
  """Judges a config before data and devices are touched.

  Raises:
    UserError: naming the first key that is wrong.
  """
  configuration.validate(config)
  tasks.named(config.task).check(config)


def make_mesh(config: Any) -> jax.sharding.Mesh:
  """The mesh of the config's `mesh` section."""
  return sharding.make_mesh(**config.mesh)


def _saved_config(workdir: str) -> Any:
  """The config of the run to resume, when the command gives none."""
  if not (epath.Path(workdir) / workdir_lib.CONFIG).exists():
    raise errors.UserError(
      f'{workdir} holds no run to resume: give --config=FILE.'
    )
  return api.read_config(workdir)


def _use(
  mode: str,
  workdir: str,
  config: Any | None,
  input_folder: str | None,
  top_k: int,
) -> int:
  """Evaluates, predicts or exports, from a workdir alone.

  A config may be given as well, to change what a run may change: where the
  data are, the size of batches.
  """
  saved = api.read_config(workdir)
  if config is not None:
    train.compare(saved, config, workdir)
  config = config or saved
  task_type = tasks.named(config.task)
  data = task_type.load_data(config) if mode == 'eval' else None
  task, manager = api.open_run(workdir, config, data)
  folder = workdir_lib.Workdir(workdir, writer=jax.process_index() == 0)
  if mode == 'eval':
    console.say(task.summary(evaluate.finish(task, manager, folder)))
    train.write_report(folder)
    return 0
  _, variables, _ = evaluate.restore(task, manager, config.eval.checkpoint)
  if mode == 'export':
    console.say(f'Wrote {predict.export(task, variables, folder)}')
    return 0
  text, unreadable = predict.predict(task, variables, input_folder, top_k)
  folder.write_bytes('predictions.csv', text.encode())
  console.say(text.rstrip('\n'))  # the table alone, for pipes
  for file in unreadable:
    print(f'could not be read, left out: {file}', file=sys.stderr)
  print(f'Wrote {folder.path / "predictions.csv"}', file=sys.stderr)
  return 0
