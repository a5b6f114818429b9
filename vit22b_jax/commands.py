"""Runs a mode of the command line: `commands.run(flags)`."""

import functools
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags as absl_flags
from absl import logging
from etils import epath

from vit22b_jax import api, errors, plan, tasks, train
from vit22b_jax import config as config_lib
from vit22b_jax.config import ConfigDict
from vit22b_jax.modes import (
  evaluate,
  export,
  fid,
  predict,
  probe,
  setup,
  translate,
)
from vit22b_jax.runtime import (
  checkpoint,
  console,
  lock,
  runs,
  sharding,
  workdir,
)
from vit22b_jax.tasks import base

Flags = absl_flags.FlagValues

# Modes that only one task has.
_TASK_OF = {
  'predict': 'classification',
  'export': 'classification',
  'translate': 'translation',
  'fid': 'translation',  # of a set that a generator makes
}
# Flags that only some modes read.
_MODES_OF = {
  'input': ('predict', 'translate'),
  'top_k': ('predict',),
  'direction': ('translate',),
  'max_size': ('translate',),
  'topology': ('plan',),
  'search': ('plan',),
  'matmul_efficiency': ('plan',),
  'minutes': ('probe',),
  'workdirs': ('report',),
}


def run(flags: Flags) -> int:
  """Runs one mode of the command line, any but 'report', which needs no jax.

  Returns:
    The process's exit code.

  Raises:
    UserError: something is missing or doesn't fit; the message says what.
    TrainingStopped: see `train.run`.
  """
  mode, config, path = flags.mode, flags.config, flags.workdir
  if config is not None and not path:
    name = pathlib.Path(flags['config'].config_filename).stem
    path = os.path.join('runs', name)
  _validate_flags(flags, path)
  if config is not None:
    validate(config, mode)
  if mode == 'fid':
    return _fid(config, path)
  if mode in ('train', 'plan', 'probe'):
    config = config or runs.find_config(path)
    if config is None:
      raise errors.UserError(
        f'{path} holds no run to resume: give --config=FILE.'
      )
  if mode == 'plan':
    hardware, efficiency = flags.topology or 'local', flags.matmul_efficiency
    return plan.run(config, path, hardware, flags.search, efficiency)
  if mode == 'probe':
    return probe.run(config, path, make_mesh(config), flags.minutes)
  if mode == 'train':
    return _train(config, path)
  task, manager = open_run(mode, path, config)
  folder = workdir.Workdir(path, writer=jax.process_index() == 0)
  if mode == 'eval':
    console.say(task.evaluator.summary(evaluate.finish(task, manager, folder)))
    evaluate.write_report(folder)
  else:
    _use(flags, task, manager, folder)
  return 0


def _validate_flags(flags: Flags, path: str | None) -> None:
  """Judges the flags beside the config."""
  mode = flags.mode
  for name in ('matmul_efficiency', 'minutes'):
    if math.isnan(flags[name].value):  # which passes a flag's bounds
      raise errors.UserError(f'--{name}=nan must be a number.')
  for name, modes in _MODES_OF.items():
    if flags[name].present and mode not in modes:
      raise errors.UserError(
        f'--{name} is of --mode={" and ".join(modes)}, and --mode={mode} '
        'would not read it.'
      )
  if not path and mode != 'fid':
    raise errors.UserError(
      'Give --config=FILE, such as configs/digits_vit22b_ti.py, or the '
      '--workdir of a run (with --mode=eval, predict, export or translate). '
      'python main.py --help tells more.'
    )
  workdir.validate_place(path or '')
  if mode in ('predict', 'translate') and not flags.input:
    raise errors.UserError(
      f'--mode={mode} needs --input=FOLDER of images, or one file.'
    )


def validate(config: ConfigDict, mode: str = 'train') -> None:
  """Judges how a config's keys fit together, before data and devices.

  Raises:
    UserError: naming the first key that is wrong.
  """
  config_lib.validate_config(config)
  if config.task != 'fid':
    tasks.TASKS[config.task].validate_config(config)
  elif mode != 'fid':
    raise errors.UserError(
      'This config compares two sets of images: add --mode=fid.'
    )


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
  """Returns the mesh of a config over all devices."""
  return sharding.make_mesh(**sharding.mesh_options(config))


def _train(config: ConfigDict, path: str) -> int:
  """Trains; a first start that fails leaves no workdir."""
  folder = epath.Path(path)
  existed = folder.exists()
  try:
    return train.run(config, path, make_mesh(config))
  except errors.UserError:
    made = not existed and jax.process_index() == 0 and folder.is_dir()
    if made and {entry.name for entry in folder.iterdir()} <= {lock.NAME}:
      folder.rmtree()
    raise


def open_run(
  mode: str, path: str, config: ConfigDict | None, dir: str = ''
) -> tuple[base.Task, checkpoint.Manager]:
  """Opens a run to be used, from its workdir alone.

  Args:
    mode: what it is used for.
    path: the run's folder.
    config: may change what a resumed run may change (where the data are, the
      size of batches); None leaves all as it was.
    dir: where its data set lies now; '' for where it lay in training.

  Returns:
    The task, with data where the mode needs them, and its checkpoints.
  """
  saved = runs.read_config(path)
  if config is not None:
    config_lib.compare(saved, config, path)
  config = config or saved
  needed = _TASK_OF.get(mode, config.task)
  if config.task != needed:
    raise errors.UserError(
      f'--mode={mode} needs the folder of a run of the task {needed!r}, and '
      f'{path} is of {config.task!r}.'
    )
  config.data.dir = dir or config.data.dir
  data = None
  if mode in ('eval', 'fid'):
    setup.validate_same_config(config)
    data = setup.load_data(config)
    if changes := setup.changed_data(config, data, path):
      logging.warning('Images changed since the training:\n%s', changes)
  return api.open_run(path, config, data)


def _use(
  flags: Flags,
  task: base.Task,
  manager: checkpoint.Manager,
  folder: workdir.Workdir,
) -> None:
  """Predicts, translates or exports with a run's weights."""
  _, variables, _ = evaluate.restore(task, manager, task.config.eval.checkpoint)
  notes = []
  if flags.mode == 'export':
    path = export.run(task, variables, folder)
    console.say(f'Wrote {path} and {path.with_name(export.DESCRIPTION)}')
  elif flags.mode == 'predict':
    text, notes = predict.run(task, variables, flags.input, flags.top_k)
    folder.write_bytes('predictions.csv', text.encode(errors='surrogateescape'))
    # The table alone on stdout, for pipes.
    console.say(errors.printable(text.rstrip('\n')))
    print(f'Wrote {folder.path / "predictions.csv"}', file=sys.stderr)
  else:
    done = translate.run(
      task, variables, flags.input, flags.direction, folder, flags.max_size
    )
    notes = done.notes
    console.say(
      f'Wrote {len(done.files)} images to {done.page.parent}; see {done.page}'
    )
  for note in map(errors.printable, notes):
    print(note, file=sys.stderr)


def _fid(config: ConfigDict | None, path: str | None) -> int:
  """Compares two sets of images, which may be what a run's generator makes."""
  if config is None or config.task != 'fid':
    raise errors.UserError(
      '--mode=fid needs --config=configs/fid.py (or configs/fid.py:paper) with '
      '--config.a=... and --config.b=...; each a folder of images, a split '
      'such as tfds:cycle_gan/monet2photo:testA, FILE.npz or WORKDIR:a2b.'
    )
  fid.run(config, path, functools.partial(_open_generator, config.dir))
  return 0


def _open_generator(dir: str, path: str, direction: str) -> Iterator[Any]:
  """Yields what a run's generator makes of its test part (or val)."""
  task, manager = open_run('fid', path, None, dir)
  _, variables, _ = evaluate.restore(task, manager, task.config.eval.checkpoint)
  return task.evaluator.made(variables, direction)
