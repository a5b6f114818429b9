"""Sets up a run to train: its folder, data, task, checkpoints and rows.

r = setup.open_run(config, path, mesh, watcher, stack)
state = setup.restore(r)
setup.introduce(r.task)
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from vit22b_jax import config as config_lib
from vit22b_jax import errors, rules, tasks
from vit22b_jax.data import catalog, fingerprint, pipeline
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import (
  checkpoint,
  console,
  distributed,
  formats,
  lock,
  preemption,
  profiling,
  records,
  runs,
)
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base
from vit22b_jax.training import optim
from vit22b_jax.weights import initial


@dataclasses.dataclass
class Run:
  """Holds what a run works with.

  Attributes:
    batches: endless, at the position of the state.
    saved_at: when the last checkpoint was saved, by `time.monotonic`.
    polls: batches of evaluations so far.
  """

  task: base.Task
  folder: workdir_lib.Workdir
  watcher: preemption.Watcher
  manager: checkpoint.Manager
  recorder: records.Recorder
  batches: pipeline.DeviceIterator
  saved_at: float = 0.0
  polls: int = 0


Due = collections.namedtuple('Due', ('log', 'evaluate', 'save', 'sample'))


def open_run(
  config: ConfigDict,
  path: epath.PathLike,
  mesh: jax.sharding.Mesh,
  watcher: preemption.Watcher,
  stack: contextlib.ExitStack,
) -> Run:
  """Opens what a run works with, and writes down what it is.

  `stack` closes everything, and writes the report.
  """
  validate_same_config(config)
  profiling.Window(config.profile)
  folder = open_workdir(config, path)
  stack.enter_context(lock.held(folder.path))
  if config.init_from and not has_steps(folder):
    initial.validate(config.init_from, config.task)
  task = make_task(config, mesh, folder)
  stack.callback(evaluate.write_report, folder)
  stack.callback(folder.close)
  run = open_run_of(task, folder, watcher, stack)
  write_description(task, folder)
  return run


def open_run_of(
  task: base.Task,
  folder: workdir_lib.Workdir,
  watcher: preemption.Watcher,
  stack: contextlib.ExitStack,
) -> Run:
  """Opens checkpoints, rows and batches of a task; `stack` closes them."""
  config = task.config
  manager = checkpoint.Manager(
    folder.path,
    scores={},
    keep=config.checkpoint.keep,
    keep_best=config.checkpoint.keep_best,
  )
  stack.callback(manager.close)
  batches = stack.enter_context(contextlib.closing(task.train_batches()))
  recorder = records.Recorder(task, folder)
  return Run(task, folder, watcher, manager, recorder, batches)


def validate_same_config(config: ConfigDict) -> None:
  """Checks that all processes have the configuration of process 0.

  Raises:
    UserError: in every process, if one of them has another.
  """
  here = rules.flatten(config)
  there = rules.flatten(distributed.broadcast_json(config.to_dict()))
  others = distributed.processes_where(here != there)
  if not others:
    return
  rows = [k for k in sorted({*here, *there}) if here.get(k) != there.get(k)]
  keys = f': here {", ".join(rows)} differ' if rows else ''
  raise errors.UserError(
    f'Processes {others[:20]} were started with another configuration than '
    f'process 0{keys}. Give every process the same command, but for '
    '--process_id.'
  )


def open_workdir(
  config: ConfigDict, path: epath.PathLike
) -> workdir_lib.Workdir:
  """Makes or reopens a run's folder, and says what changed since.

  A folder where no step was recorded is nobody's: a first start that failed
  doesn't stand in the way of the next.
  """
  folder = workdir_lib.Workdir(
    path,
    tensorboard=config.log.tensorboard,
    wandb=config.log.wandb,
    writer=jax.process_index() == 0,
  )
  distributed.validate_shared(folder.path)
  if has_steps(folder) and (old := runs.find_config(path)):
    for key, before, now in config_lib.compare(old, config, folder.path):
      console.say(f'Changed since the last start: {key}: {before!r} -> {now!r}')
  return folder


def has_steps(folder: workdir_lib.Workdir) -> bool:
  """Returns whether a run has recorded a step."""
  return (folder.path / workdir_lib.DIAGNOSTICS).exists()


def make_task(
  config: ConfigDict, mesh: jax.sharding.Mesh, folder: workdir_lib.Workdir
) -> base.Task:
  """Loads the data, and gets what training will need later.

  Raises:
    UserError: something can't be had, or isn't what the run was trained on.
  """
  data = load_data(config)
  validate_same_data(config, data, folder)
  task = tasks.TASKS[config.task](config, mesh, list(data.names), data)
  if text := task.validate_sharding():
    console.say(text)
  task.evaluator.prepare()
  return task


def load_data(config: ConfigDict) -> catalog.Dataset:
  """Loads a run's data set, the same one in all processes.

  Raises:
    UserError: there is none, or processes found different images.
  """
  data = distributed.run_on_process_zero_first(
    lambda: tasks.TASKS[config.task].load_data(config)
  )
  here = dict(data.fingerprint) | _sizes(data)
  there = distributed.broadcast_json(here)
  if others := distributed.processes_where(here != there):
    lines = ''.join(f'\n  {x}' for x in fingerprint.compare(there, here)[:20])
    raise errors.UserError(
      f'Processes {others[:20]} found other images than process 0 in '
      f'{config.data.name}: give all of them the same folder, or copies of '
      f'it.{lines}'
    )
  return data


def _sizes(data: catalog.Dataset) -> dict[str, str]:
  """Counts the images that could be read, as marks of a fingerprint."""
  sizes = {}
  for name in ('train', 'val', 'test'):
    part = getattr(data, name)
    both = (part.a, part.b) if isinstance(part, catalog.Pair) else (part,)
    counts = [str(len(split)) for split in both if split is not None]
    sizes[f'{name} (read)'] = ' '.join(counts)
  return sizes


def validate_same_data(
  config: ConfigDict, data: catalog.Dataset, folder: workdir_lib.Workdir
) -> None:
  """Compares classes and images with those that a run was trained on.

  Raises:
    UserError: the classes differ, or images do without `data.allow_changes`.
  """
  allowed = config.data.allow_changes
  changes = has_steps(folder) and changed_data(config, data, folder.path)
  if changes and not allowed:
    raise errors.UserError(
      f'The workdir {folder.path} was trained on other images:\n{changes}\n'
      'Put them back, use another --workdir, or go on with what is there now: '
      '--config.data.allow_changes=True.'
    )
  if changes:
    console.say(f'Images changed since the last start:\n{changes}')


def changed_data(
  config: ConfigDict, data: catalog.Dataset, path: epath.PathLike
) -> str:
  """Lists the images that aren't those of a run's training; '' if all are.

  Domains are named by a path, so that their names may change.

  Raises:
    UserError: the classes differ, which labels count.
  """
  names, path = list(data.names), epath.Path(path)
  before = formats.read_json(path / workdir_lib.CLASSES, list)
  if config.task == 'classification' and before not in (None, names):
    raise errors.UserError(
      f'The workdir {path} was trained on the {len(before)} classes '
      f'{", ".join(before[:5])}, ..., and the data set now has {len(names)}: '
      f'{", ".join(names[:5])}, .... Use another --workdir, or the data set as '
      'it was.'
    )
  marks = formats.Fields(others=str)
  before = formats.read_json(path / workdir_lib.DATA, marks)
  if before is None:  # The run is older than the file.
    return ''
  lines = fingerprint.compare(before, data.fingerprint)
  return '\n'.join(f'  {line}' for line in lines)


def write_description(task: base.Task, folder: workdir_lib.Workdir) -> None:
  """Writes config.json, classes.json, data.json and versions.json."""
  text = config_lib.to_json(task.config)
  folder.write_bytes(workdir_lib.CONFIG, text.encode())
  folder.write_json(workdir_lib.CLASSES, task.names)
  folder.write_json(workdir_lib.DATA, dict(task.data.fingerprint))
  devices = [f'{d.platform}:{d.device_kind}' for d in jax.devices()]
  shapes = jax.tree.leaves(task.abstract_params)
  parameters = sum(shape.size for shape in shapes)
  versions = workdir_lib.versions(devices) | {'parameters': parameters}
  if '--config=' not in (versions['command'] or ''):  # resumed by its workdir
    old = formats.read_json(folder.path / workdir_lib.VERSIONS, dict) or {}
    versions['command'] = old.get('command') or versions['command']
  folder.write_json(workdir_lib.VERSIONS, versions)


def restore(r: Run) -> base.State:
  """Returns the state to start from, with rows and batches to match.

  The newest checkpoint comes before `init_from`, and that before the seed.

  Raises:
    UserError: the checkpoints are another run's, none can be read, or those of
      a finished run are gone.
  """
  task, config, path = r.task, r.task.config, r.folder.path
  found = r.manager.restore(
    task.abstract_state.to_dict(),
    check=lambda meta: config_lib.compare(meta['config'], config, path),
  )
  is_finished = has_steps(r.folder) and (path / workdir_lib.EVAL).exists()
  if found is None and is_finished:
    raise errors.UserError(
      f'{path} holds a finished run whose checkpoints are gone, and training '
      'would begin anew over its results: give another --workdir, or move the '
      'folder.'
    )
  r.folder.truncate(found.step if found else 0)
  if found is None or found.step < task.total_steps:
    r.folder.forget_evaluation()
  if found is None:
    state = task.init_state()
    if not config.init_from:
      console.say(f'Starting from scratch, seed {config.seed}.')
      return state
    step = evaluate.chosen_step(task, config.init_from)
    where = f', step {step}' if step else ''
    console.say(f'Starting from the weights of {config.init_from}{where}.')
    return task.with_pretrained(state, config.init_from, step)
  r.batches.set_state(found.meta['data'])
  r.recorder.interval = records.Interval(**found.meta['progress'])
  known = distributed.broadcast_json(
    [*evaluate.scores(task.evaluator, path).items()]
  )
  r.manager.scores.update((step, tuple(score)) for step, score in known)
  done, total = found.step, task.total_steps
  text = f'Resuming from checkpoint {done} of {total} steps in {path}.'
  if done > total:
    text = (
      f'The run in {path} has done {done} steps, more than the {total} of '
      f'duration={config.duration!r}: nothing is left to train.'
    )
  console.say(text)
  return task.abstract_state.replace(**found.state)


def introduce(task: base.Task) -> None:
  """Prints what is about to be trained, on what."""
  console.say(console.parameter_table(task.abstract_state.params))
  mesh = ', '.join(f'{k}={v}' for k, v in task.mesh.shape.items())
  console.say(
    f'{task.total_steps} steps of {task.config.batch_size} images, '
    f'{task.steps_per_epoch} an epoch; {task.mesh.size} x '
    f'{jax.devices()[0].device_kind} ({mesh}), {task.config.model.dtype}.'
  )
  section, batch_size = task.config.optim, task.config.batch_size
  if section.base_batch_size:
    rate = optim.peak_rate(section, batch_size)
    console.say(
      f'Learning rate {rate:g}: {section.learning_rate:g} for a batch of '
      f'{section.base_batch_size}, scaled to {batch_size}.'
    )
  warmup = task.steps(section.warmup)
  if warmup > task.total_steps:
    console.say(
      f'Warm-up takes {warmup} steps, more than the run has: the rate only '
      f'comes to {task.total_steps / warmup:.0%} of its peak. A smaller '
      'optim.warmup, such as 5%, leaves time to train.'
    )
  if section.get('freeze') == 'backbone':
    console.say('Only the head is trained; all other weights are frozen.')


def calendar(task: base.Task) -> Callable[[int], Due]:
  """Returns a function that says what is due after a step.

  Everything is due after the last one; what has no cadence never is.
  """
  config = task.config
  cadences = Due(
    log=config.log.every,
    evaluate=config.eval.every,
    save=config.checkpoint.every,
    sample=config.log.get('samples', 0),
  )
  steps = [task.steps(cadence) for cadence in cadences]
  return lambda step: Due(
    *(n > 0 and (step == task.total_steps or step % n == 0) for n in steps)
  )


def minutes_are_up(r: Run, log_now: bool) -> bool:
  """Returns whether `checkpoint.minutes` have passed since the last save.

  Several processes ask process 0's clock, when they log a row.
  """
  minutes = r.task.config.checkpoint.minutes
  if not minutes or (jax.process_count() > 1 and not log_now):
    return False
  up = time.monotonic() - r.saved_at >= 60 * minutes
  return distributed.broadcast_json(up)
