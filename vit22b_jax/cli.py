"""The command line's modes, after its flags are parsed.

code = command.run('train', config=config, workdir='runs/x')
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from vit22b_jax import api, errors, plan, tasks, train
from vit22b_jax import config as config_lib
from vit22b_jax.fid import sources as fid_sources
from vit22b_jax.modes import evaluate, predict, translate
from vit22b_jax.modes import fid as fid_mode
from vit22b_jax.runtime import checkpoint, console, distributed, sharding
from vit22b_jax.runtime import workdir as workdir_lib

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
  config: Any | None,
  workdir: str | None,
  input_folder: str | None = None,
  top_k: int = 1,
  direction: str = 'a2b',
  topology: str | None = None,
  search: bool = False,
  efficiency: float = 1.0,
  workdirs: Sequence[str] = (),
) -> int:
  """Runs one mode of the command line.

  Args:
    mode: 'train', 'eval', 'predict', 'export', 'translate', 'fid' or 'plan'.
    config: the run's configuration; may be left out where the workdir has one.
    workdir: the run's folder.
    input_folder: predict, translate: the images.
    top_k: predict: classes for each image.
    direction: translate: 'a2b' or 'b2a'.
    topology: plan: the hardware, see `plan.topologies`.
    search: plan: look for the fastest way.
    efficiency: plan: part of the peak that products reach, in (0, 1].
    workdirs: what only a report, which needs no jax, is given.

  Returns:
    The process's exit code.

  Raises:
    UserError: something is missing or doesn't fit; the message says what.
    TrainingStopped: see `train.run`.
  """
  if mode != 'plan' and (topology or search):
    raise errors.UserError(
      '--topology and --search plan a run: add --mode=plan.'
    )
  if workdirs:
    raise errors.UserError('--workdirs compares runs: add --mode=report.')
  if mode == 'fid':
    return _fid(config, workdir)
  if workdir is None:
    raise errors.UserError(
      'Give --config=FILE, such as configs/digits_vit22b_ti.py, or the '
      '--workdir of a run (with --mode=eval, predict, export or translate). '
      'python main.py --help tells more.'
    )
  if config is not None:
    check(config)
  if mode == 'train':
    if config is None:
      config = _saved_config(workdir)
    return train.run(config, workdir, make_mesh(config))
  if mode == 'plan':
    if config is None:
      config = api.read_config(workdir)
    return plan.run(config, workdir, topology or 'local', search, efficiency)
  if mode in ('predict', 'translate') and not input_folder:
    raise errors.UserError(f'--mode={mode} needs --input=FOLDER of images.')
  config = _config_of(mode, workdir, config)
  task, manager = _open(workdir, config, with_data=mode == 'eval')
  folder = workdir_lib.Workdir(workdir, writer=jax.process_index() == 0)
  if mode == 'eval':
    console.say(task.summary(evaluate.finish(task, manager, folder)))
    train.write_report(folder)
    return 0
  _, variables, _ = evaluate.restore(task, manager, config.eval.checkpoint)
  if mode == 'export':
    console.say(f'Wrote {predict.export(task, variables, folder)}')
  elif mode == 'predict':
    _predict(task, variables, folder, input_folder, top_k)
  else:
    out = folder.path / f'translated_{direction}'
    done = translate.run(task, variables, input_folder, direction, out)
    _complain_of(done.unreadable)
    console.say(f'Wrote {len(done.files)} images to {out}; see {done.page}')
  return 0


def check(config: Any) -> None:
  """Judges a config before data and devices are touched.

  Raises:
    UserError: naming the first key that is wrong.
  """
  if config.task == 'fid':
    raise errors.UserError(
      'This config compares two sets of images: add --mode=fid.'
    )
  config_lib.validate(config)
  tasks.named(config.task).check(config)


def make_mesh(config: Any) -> jax.sharding.Mesh:
  """The mesh of the config's `sharding` and `mesh` section."""
  return sharding.make_mesh(config.sharding, **sharding.sizes(config.mesh))


def _saved_config(workdir: str) -> Any:
  """The config of the run to resume, when the command gives none."""
  if not (epath.Path(workdir) / workdir_lib.CONFIG).exists():
    raise errors.UserError(
      f'{workdir} holds no run to resume: give --config=FILE.'
    )
  return api.read_config(workdir)


def _config_of(mode: str, workdir: str, config: Any | None) -> Any:
  """The configuration of a run that is used, from a workdir alone.

  A config may be given as well, to change what a run may change: where the
  data are, the size of batches.
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
  return config


def _open(
  workdir: str, config: Any, with_data: bool
) -> tuple[Any, checkpoint.Manager]:
  data = None
  if with_data:
    train.check_alike(config)
    task_type = tasks.named(config.task)
    data = distributed.first(lambda: task_type.load_data(config))
  return api.open_run(workdir, config, data)


def _predict(
  task: Any,
  variables: Any,
  folder: workdir_lib.Workdir,
  images: str,
  top_k: int,
) -> None:
  """Prints the table alone on stdout, for pipes, and writes it."""
  text, unreadable = predict.predict(task, variables, images, top_k)
  folder.write_bytes('predictions.csv', text.encode())
  console.say(text.rstrip('\n'))
  _complain_of(unreadable)
  print(f'Wrote {folder.path / "predictions.csv"}', file=sys.stderr)


def _complain_of(unreadable: list[str]) -> None:
  for file in unreadable:
    print(f'could not be read, left out: {file}', file=sys.stderr)


def _fid(config: Any | None, workdir: str) -> int:
  """Compares two sets of images, which may be what a run's generator makes."""
  if config is None or config.task != 'fid':
    raise errors.UserError(
      '--mode=fid needs --config=configs/fid.py (or configs/fid.py:paper) with '
      '--config.a=... and --config.b=...; each a folder of images, a split '
      'such as tfds:cycle_gan/monet2photo:testA, FILE.npz or WORKDIR:a2b.'
    )
  fid_mode.run(config, workdir, functools.partial(_open_generator, config.dir))
  return 0


def _open_generator(
  dir: str, workdir: str, direction: str
) -> fid_sources.Batches:
  """What a run's generator makes of its test part (or val, without one).

  Args:
    dir: where its data set lies now; '' for where it lay in training.
    workdir: the run's folder.
    direction: 'a2b' or 'b2a'.
  """
  config = _config_of('fid', workdir, None)
  if dir:
    config.data.dir = dir
  task, manager = _open(workdir, config, with_data=True)
  _, variables, _ = evaluate.restore(task, manager, config.eval.checkpoint)
  return task.generated(variables, direction)
