"""Runs a mode of the command line, after its flags are parsed.

code = commands.run('train', config=config, workdir='runs/x')
"""

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
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
from vit22b_jax.runtime import checkpoint, console, distributed, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base

# Modes that only one task has.
_TASK_OF = {
  'predict': 'classification',
  'export': 'classification',
  'translate': 'translation',
  'fid': 'translation',  # of a set that a generator makes
}


def run(
  mode: str,
  *,
  config: ConfigDict | None,
  workdir: str | None,
  images: str | None = None,
  top_k: int = 1,
  direction: str = 'a2b',
  max_size: int = 0,
  topology: str | None = None,
  search: bool = False,
  efficiency: float = 1.0,
  workdirs: Sequence[str] = (),
  minutes: float = 20.0,
) -> int:
  """Runs one mode of the command line.

  Args:
    mode: one of cli.MODES but 'report'.
    config: the run's configuration; may be left out where the workdir has one.
    workdir: the run's folder.
    images: predict, translate: a folder of images, or one file.
    top_k: predict: classes for each image.
    direction: translate: 'a2b' or 'b2a'.
    max_size: translate: longest side that a generator sees; 0: by memory.
    topology: plan: the hardware, see `plan.topologies`.
    search: plan: look for the fastest way.
    efficiency: plan: part of the peak that products reach, in (0, 1].
    workdirs: what only a report, which needs no jax, is given.
    minutes: probe: when the last trial begins.

  Returns:
    The process's exit code.

  Raises:
    UserError: something is missing or doesn't fit; the message says what.
    TrainingStopped: see `train.run`.
  """
  if not 0 < efficiency <= 1:  # nan passes a flag's bounds
    raise errors.UserError(
      f'--matmul_efficiency={efficiency} must be above 0 and at most 1.'
    )
  planning = bool(topology or search)
  _validate_flags(mode, workdir, workdirs, images, max_size, planning)
  if config is not None:
    validate(config, mode)
  if mode == 'fid':
    return _fid(config, workdir)
  if mode == 'plan':
    config = config or api.read_config(workdir)
    return plan.run(config, workdir, topology or 'local', search, efficiency)
  if mode in ('train', 'probe'):
    config = config or _saved_config(workdir)
    if mode == 'train':
      return _train(config, workdir)
    return probe.run(config, workdir, make_mesh(config), minutes)
  task, manager = open_run(mode, workdir, config)
  if mode == 'eval':
    return _evaluate(task, manager, workdir)
  return _use(mode, task, manager, workdir, images, top_k, direction, max_size)


def _train(config: ConfigDict, workdir: str) -> int:
  """Trains; a first start that fails leaves no workdir."""
  path = epath.Path(workdir)
  existed = path.exists()
  try:
    return train.run(config, workdir, make_mesh(config))
  except errors.UserError:
    if not existed and path.is_dir() and not list(path.iterdir()):
      path.rmdir()
    raise


def _validate_flags(
  mode: str,
  workdir: str | None,
  workdirs: Sequence[str],
  images: str | None,
  max_size: int,
  planning: bool,
) -> None:
  """Judges the flags beside the config."""
  if planning and mode != 'plan':
    raise errors.UserError(
      '--topology and --search plan a run: add --mode=plan.'
    )
  if workdirs:
    raise errors.UserError('--workdirs compares runs: add --mode=report.')
  if workdir is None and mode != 'fid':
    raise errors.UserError(
      'Give --config=FILE, such as configs/digits_vit22b_ti.py, or the '
      '--workdir of a run (with --mode=eval, predict, export or translate). '
      'python main.py --help tells more.'
    )
  if re.match(r'\w+://', workdir or '') and not workdir.startswith('gs://'):
    raise errors.UserError(
      f'--workdir={workdir}: runs are kept on local disks and gs:// alone; '
      'mount other storage, or copy the folder there afterwards.'
    )
  if max_size < 0:
    raise errors.UserError(f'--max_size={max_size} must be at least 0.')
  if mode in ('predict', 'translate') and not images:
    raise errors.UserError(
      f'--mode={mode} needs --input=FOLDER of images, or one file.'
    )


def validate(config: ConfigDict, mode: str = 'train') -> None:
  """Judges a config before data and devices are touched.

  Raises:
    UserError: naming the first key that is wrong.
  """
  config_lib.validate_config(config)
  if mode == 'fid' and config.task == 'fid':
    return
  if config.task == 'fid':
    raise errors.UserError(
      'This config compares two sets of images: add --mode=fid.'
    )
  tasks.named(config.task).validate_config(config)


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
  """Returns the mesh of the config's `sharding` and `mesh` section."""
  return sharding.make_mesh(config.sharding, **sharding.mesh_sizes(config.mesh))


def _saved_config(workdir: str) -> ConfigDict:
  """Returns the config of the run to resume, when the command gives none."""
  if workdir_lib.read_text(workdir, workdir_lib.CONFIG) is None:
    raise errors.UserError(
      f'{workdir} holds no run to resume: give --config=FILE.'
    )
  return api.read_config(workdir)


def open_run(
  mode: str,
  workdir: str,
  config: ConfigDict | None,
  dir: str = '',
) -> tuple[base.Task, checkpoint.Manager]:
  """Opens a run to be used, from its workdir alone.

  Args:
    mode: what it is used for.
    workdir: the run's folder.
    config: may change what a resumed run may change (where the data are, the
      size of batches); None leaves all as it was.
    dir: where its data set lies now; '' for where it lay in training.

  Returns:
    The task, with data where the mode needs them, and its checkpoints.
  """
  saved = api.read_config(workdir)
  if config is not None:
    config_lib.compare(saved, config, workdir)
  config = config or saved
  needed = _TASK_OF.get(mode, config.task)
  if config.task != needed:
    raise errors.UserError(
      f'--mode={mode} needs the folder of a run of the task {needed!r}, and '
      f'{workdir} is of {config.task!r}.'
    )
  config.data.dir = dir or config.data.dir
  data = None
  if mode in ('eval', 'fid'):
    setup.validate_same_config(config)
    task_type = tasks.named(config.task)
    data = distributed.run_on_process_zero_first(
      lambda: task_type.load_data(config)
    )
  return api.open_run(workdir, config, data)


def _evaluate(
  task: base.Task, manager: checkpoint.Manager, workdir: str
) -> int:
  """Evaluates on the test part and writes the report anew."""
  folder = _folder(workdir)
  console.say(task.evaluator.summary(evaluate.finish(task, manager, folder)))
  evaluate.write_report(folder)
  return 0


def _folder(workdir: str) -> workdir_lib.Workdir:
  return workdir_lib.Workdir(workdir, writer=jax.process_index() == 0)


def _use(
  mode: str,
  task: base.Task,
  manager: checkpoint.Manager,
  workdir: str,
  images: str | None,
  top_k: int,
  direction: str,
  max_size: int,
) -> int:
  """Predicts, translates or exports with a run's weights."""
  _, variables, _ = evaluate.restore(task, manager, task.config.eval.checkpoint)
  folder, notes = _folder(workdir), []
  if mode == 'export':
    path = export.run(task, variables, folder)
    console.say(f'Wrote {path} and {path.with_name(export.DESCRIPTION)}')
  elif mode == 'predict':
    text, notes = predict.run(task, variables, images, top_k)
    folder.write_bytes('predictions.csv', text.encode(errors='surrogateescape'))
    # The table alone on stdout, for pipes.
    console.say(errors.printable(text.rstrip('\n')))
    print(f'Wrote {folder.path / "predictions.csv"}', file=sys.stderr)
  else:
    done = translate.run(task, variables, images, direction, folder, max_size)
    notes = done.notes
    console.say(
      f'Wrote {len(done.files)} images to {done.page.parent}; see {done.page}'
    )
  for note in map(errors.printable, notes):
    print(note, file=sys.stderr)
  return 0


def _fid(config: ConfigDict | None, workdir: str | None) -> int:
  """Compares two sets of images, which may be what a run's generator makes."""
  if config is None or config.task != 'fid':
    raise errors.UserError(
      '--mode=fid needs --config=configs/fid.py (or configs/fid.py:paper) with '
      '--config.a=... and --config.b=...; each a folder of images, a split '
      'such as tfds:cycle_gan/monet2photo:testA, FILE.npz or WORKDIR:a2b.'
    )
  fid.run(config, workdir, functools.partial(_open_generator, config.dir))
  return 0


def _open_generator(dir: str, workdir: str, direction: str) -> Iterator[Any]:
  """Yields what a run's generator makes of its test part (or val)."""
  task, manager = open_run('fid', workdir, None, dir)
  _, variables, _ = evaluate.restore(task, manager, task.config.eval.checkpoint)
  return task.evaluator.made(variables, direction)
