"""The command line's modes, after its flags are parsed.

code = command.run('train', config=config, workdir='runs/x')
"""

from typing import Any

import jax
from etils import epath

from vit22b_jax import (
  api,
  configuration,
  errors,
  evaluate,
  report,
  sharding,
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
      '--workdir of a run (with --mode=eval, predict or export).'
    )
  if mode == 'train' and config is None:
    saved = epath.Path(workdir) / workdir_lib.CONFIG
    if not saved.exists():
      raise errors.UserError(
        f'{workdir} holds no run to resume: give --config=FILE.'
      )
    config = api.read_config(workdir)
  if mode == 'train':
    configuration.validate(config)
    return train.run(config, workdir, make_mesh(config))
  if mode == 'predict' and input_folder is None:
    raise errors.UserError('--mode=predict needs --input=FOLDER of images.')
  return _use(mode, workdir, input_folder, top_k)


def make_mesh(config: Any) -> jax.sharding.Mesh:
  """The mesh of the config's `mesh` section."""
  return sharding.make_mesh(**config.mesh)


def _use(mode: str, workdir: str, input_folder: str | None, top_k: int) -> int:
  """Evaluates, predicts or exports, from a workdir alone."""
  config = api.read_config(workdir)
  data = train.load_data(config) if mode == 'eval' else None
  task, manager = api.open_run(workdir, config, data)
  folder = workdir_lib.Workdir(workdir, writer=jax.process_index() == 0)
  if mode == 'eval':
    result = evaluate.finish(task, manager, folder)
    train.say(' '.join(f'{key}={value}' for key, value in result.items()))
    train.say(f'Report: {report.write(folder.path)}')
    return 0
  _, variables, _ = evaluate.restore(task, manager, config.eval.checkpoint)
  if mode == 'export':
    train.say(f'Wrote {evaluate.export(task, variables, folder)}')
    return 0
  text, unreadable = evaluate.predict(task, variables, input_folder, top_k)
  folder.write_bytes('predictions.csv', text.encode())
  train.say(text.rstrip('\n'))
  for file in unreadable:
    train.say(f'could not be read, left out: {file}')
  train.say(f'Wrote {folder.path / "predictions.csv"}')
  return 0
