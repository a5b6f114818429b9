"""The training loop, one for every task.

    code = train.run(config, workdir, mesh)

In execution order: the workdir and whose it is; the task with its data; the
state (workdir checkpoint > `init_from` > scratch); steps, with their scalars
read one step late so that the devices never wait for the host; evaluations,
checkpoints; at the end the final evaluation and the report.

Steps are counted from 1: row n of diagnostics.csv is what step n did, and
checkpoint n holds the state after it.
"""

import contextlib
import dataclasses
import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from vit22b_jax import config as config_lib
from vit22b_jax import errors, report, rules, tasks
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import (
  checkpoint,
  console,
  distributed,
  host,
  preemption,
  profiling,
  records,
)
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base
from vit22b_jax.training import diagnostics


def open_workdir(
  config: Any, path: epath.PathLike
) -> tuple[workdir_lib.Workdir, list[tuple[str, Any, Any]]]:
  """Makes or reopens a run's folder; refuses another run's.

  A folder where no step was recorded is nobody's: a first start that failed
  doesn't stand in the way of the next.

  Returns:
    The folder, and the changes since the last start; see `config.compare`.

  Raises:
    UserError: the folder can't be written, or is another run's.
  """
  run = workdir_lib.Workdir(
    path,
    tensorboard=config.log.tensorboard,
    writer=jax.process_index() == 0,
  )
  distributed.validate_shared(run.path, lambda name: run.write_bytes(name, b''))
  old = workdir_lib.read_text(path, workdir_lib.CONFIG)
  if old is None or not (run.path / workdir_lib.DIAGNOSTICS).exists():
    return run, []
  saved = config_lib.from_json(old, run.path / workdir_lib.CONFIG)
  return run, config_lib.compare(saved, config, run.path)


class Loop:
  """One run of one task.

  Args:
    task: what to train.
    run: the run's folder.
    watcher: hears of SIGTERM and SIGINT.
  """

  def __init__(
    self,
    task: base.Task,
    run: workdir_lib.Workdir,
    watcher: preemption.Watcher,
  ):
    self.task = task
    self.config = task.config
    self.run = run
    self.watcher = watcher
    self.window = profiling.Window.parse(self.config.profile, task.total_steps)
    self.recorder = records.Recorder(task, run)
    self.scores: dict[int, float] = {}
    self.manager = checkpoint.Manager(
      run.path,
      scores=self.scores,
      keep=self.config.checkpoint.keep,
      keep_best=self.config.checkpoint.keep_best,
    )
    self.data = task.train_iterator()
    self._log_every = task.steps(self.config.log.every)
    self._save_every = task.steps(self.config.checkpoint.every)
    self._eval_every = task.steps(self.config.eval.every)
    self._pending = None
    self._batches_checked = 0  # of evaluations
    self._bar: console.Progress

  # --- Start ---------------------------------------------------------------

  def restore(self) -> base.State:
    """The state to start from: newest checkpoint > `init_from` > scratch."""
    task, config = self.task, self.config

    def check(meta):
      config_lib.compare(meta['config'], config, self.run.path)

    found = self.manager.restore(
      vars(task.abstract_state), data=self.data, check=check
    )
    if found:
      self.recorder.interval = records.Interval(**found.meta['progress'])
      self.run.truncate(found.step)
      known = evaluate.scores(task, self.run.path)
      self.scores.update(distributed.broadcast_json([*known.items()]))
      console.say(
        f'Resuming from checkpoint {found.step} of {task.total_steps} steps in '
        f'{self.run.path}.'
      )
      return type(task.abstract_state)(**found.state)
    self.run.truncate(0)
    state = task.init()
    if config.init_from:
      console.say(f'Starting from the weights of {config.init_from}.')
      return task.with_pretrained(state, config.init_from)
    console.say(f'Starting from scratch, seed {config.seed}.')
    return state

  # --- Steps ---------------------------------------------------------------

  def fit(self, state: base.State) -> base.State:
    """Trains to the end of the run (or of its patience); the last state.

    Raises:
      preemption.Interrupted: a signal asked to stop; everything is saved.
      TrainingStopped: a loss wasn't finite, or exploded under 'halt'.
    """
    step = int(state.step)
    total = self.task.total_steps
    self._saved_at = time.monotonic()
    with console.Progress(total, step) as self._bar:
      if step and self._due(step, self._eval_every, total):
        self._evaluate_once(state, step)
      if not step and self.task.sample_every:
        self.task.sample(state, self.run)
      while step < total and not self._out_of_patience():
        position = self.data.get_state()
        batch = next(self.data)
        self.window.before(step + 1, self.run.path)
        state, scalars = self.task.train_step(state, batch)
        step += 1
        self.window.after(step, state)
        self._record(state)
        self._pending = (step, scalars, batch, position)
        self._after(state, step, total)
    return state

  def _after(self, state: base.State, step: int, total: int) -> None:
    """What is due after a step: log row, evaluation, checkpoint, stop."""
    evaluate_now = self._due(step, self._eval_every, total)
    log_now = self._due(step, self._log_every, total)
    if not self.watcher.started:
      self._record(state)  # waits for the first step
      self.watcher.started = True
      console.say(
        f'First step done {time.monotonic() - host.STARTED:.1f} s after start.'
      )
      # Speeds leave the compilation out.
      self.recorder.start_clock(self.data.seconds_waited)
      self._bar.start_clock()
    stop = self.watcher.should_stop(step)
    save_now = self._due(step, self._save_every, total) or stop
    save_now |= self._minutes_are_up(log_now)
    if log_now or evaluate_now or save_now:
      self._record(state)
    if log_now:
      text = self.recorder.log(step, self.data.seconds_waited)
      if not self._bar.shown:
        console.say(f'{text}{self._bar.eta()}')
    if self._due(step, self.task.sample_every, total):
      self._record(state)
      with self._left_out():
        self.task.sample(state, self.run)
    if stop:
      self._save(state, step)
      self._finish_saving()
      raise preemption.Interrupted(self.watcher.signal.name)
    improved = evaluate_now and self._evaluate_once(state, step)
    if save_now or improved or self._out_of_patience():
      self._save(state, step)

  @staticmethod
  def _due(step: int, every: int, total: int) -> bool:
    return every > 0 and (step == total or step % every == 0)

  @contextlib.contextmanager
  def _left_out(self):
    """The speed of the interval is that of training alone."""
    start = time.monotonic()
    yield
    self.recorder.leave_out(time.monotonic() - start)

  def _minutes_are_up(self, log_now: bool) -> bool:
    """Returns whether `checkpoint.minutes` have passed since the last save.

    Several processes ask process 0's clock, when they log a row.
    """
    minutes = self.config.checkpoint.minutes
    if not minutes or (jax.process_count() > 1 and not log_now):
      return False
    up = time.monotonic() - self._saved_at >= 60 * minutes
    return distributed.broadcast_json(up)

  def check(self) -> None:
    """Leaves an evaluation, between two batches, once a signal was heard.

    While the first batch compiles, for which everything has been saved, a
    signal ends the process at once. Several processes finish the evaluation.
    """
    if self.watcher.signal:
      raise preemption.Interrupted(self.watcher.signal.name)
    self._batches_checked += 1
    self.watcher.why = 'everything was saved, and the same command resumes'
    self.watcher.started = self._batches_checked > 1

  def _out_of_patience(self) -> bool:
    patience = self.config.eval.early_stop
    if not patience or not self.scores:
      return False
    best = max(self.scores, key=lambda step: (self.scores[step], -step))
    return sum(step > best for step in self.scores) >= patience

  def _record(self, state: base.State) -> None:
    """Reads the scalars of the step before, which has ended by now or soon."""
    if self._pending is None:
      return
    step, scalars, batch, position = self._pending
    self._pending = None
    row = self.recorder.step(step, scalars)
    if row['verdict/stopped']:
      self._stop(state, step, row, batch, position)
    if row['verdict/onset']:
      self.recorder.event(step, row, state.monitor)
    self._bar.update(self.recorder.count(row))

  def _stop(self, state, step, row, batch, position) -> None:
    """Saves the state before a step that must not be applied, and raises."""
    what = 'an explosion, and diagnostics.on_explosion is "halt"'
    if not row['verdict/finite']:
      layer = self.task.locate_nonfinite(state, batch)
      what = f'the loss is {row["loss"]:.4g}; first non-finite: {layer}'
    elif row['verdict/stuck']:
      what = f'the last {diagnostics.STUCK_STEPS} steps were all skipped'
    self.recorder.event(step, row, state.monitor, what)
    self.data.set_state(position)
    monitor = state.monitor
    state = state.replace(
      monitor=monitor.replace(stopped=jnp.zeros_like(monitor.stopped))
    )
    self._save(state, step - 1)
    self._finish_saving()
    raise errors.TrainingStopped(
      f'Step {step}: {what}. The state before that step is checkpoint '
      f'{step - 1} in {self.run.path}; diagnostics.csv and events.jsonl there '
      f'tell what came before. {self.task.cures}'
    )

  # --- Evaluation and checkpoints --------------------------------------------

  def _evaluate_once(self, state: base.State, step: int) -> bool:
    """Validates, unless this step has been; whether it is the best so far."""
    if step in self.scores:
      return False
    if not self._batches_checked:  # compiling comes next, see `check`
      self._save(state, step)
      self._finish_saving()
    started = self.watcher.started
    with self._left_out():
      try:
        variables, _ = self.task.variables(vars(state))
        found = distributed.broadcast_json(
          self.task.validate(variables, self.check)
        )
      except (preemption.Interrupted, errors.UserError) as error:
        if isinstance(error, errors.UserError) and jax.process_count() > 1:
          raise  # others may not have met it, and couldn't save
        self._save(state, step)
        self._finish_saving()
        raise
      finally:
        self.watcher.started = started
    values = {f'val/{name}': value for name, value in found.items()}
    epoch = step / self.task.steps_per_epoch
    self.run.metrics(step, {'epoch': epoch, **values})
    self.run.flush()
    score = values[self.task.best_metric]
    score = score if self.task.best_mode == 'max' else -score
    improved = all(score > old for old in self.scores.values())
    self.scores[step] = score
    shown = ', '.join(f'{name} {value:.4f}' for name, value in found.items())
    best = ' (best so far)' if improved else ''
    note = self.task.validation_note
    console.say(f'step {step}  validation: {shown}{note}{best}')
    return improved

  def _save(self, state: base.State, step: int) -> None:
    with self._left_out():
      self.run.flush()
      self.manager.save(
        step,
        vars(state),
        data=self.data,
        meta={
          'progress': dataclasses.asdict(self.recorder.interval),
          'config': self.config.to_dict(),
        },
      )
    self._saved_at = time.monotonic()

  def _finish_saving(self) -> None:
    self.manager.wait()
    self.run.flush()


def run(config: Any, path: epath.PathLike, mesh: jax.sharding.Mesh) -> int:
  """Trains, evaluates and reports; resumes what the workdir holds.

  Args:
    config: the run's configuration.
    path: its workdir.
    mesh: where arrays live.

  Returns:
    The exit code: 0, or 128 + the number of the signal that asked to stop.

  Raises:
    UserError: the input is wrong.
    TrainingStopped: a loss wasn't finite, or exploded under 'halt'.
  """
  with preemption.Watcher(together=jax.process_count() > 1) as watcher:
    check_alike(config)
    profiling.Window.parse(config.profile)
    folder, changes = open_workdir(config, path)
    for key, old, new in changes:
      console.say(f'Changed since the last start: {key}: {old!r} -> {new!r}')
    task_type = tasks.named(config.task)
    data = distributed.run_on_process_zero_first(
      lambda: task_type.load_data(config)
    )
    names = task_type.names_of(data)
    _check_names(folder, task_type, names)
    task = task_type(config, mesh, names, data)
    task.prepare()
    with contextlib.ExitStack() as stack:
      stack.callback(write_report, folder)
      stack.callback(folder.close)
      loop = Loop(task, folder, watcher)
      stack.callback(loop.manager.close)
      stack.callback(loop.window.close)
      stack.callback(loop.data.close)
      folder.write_bytes(
        workdir_lib.CONFIG, config_lib.to_json(config).encode()
      )
      folder.write_json(workdir_lib.CLASSES, names)
      folder.write_json(workdir_lib.VERSIONS, _environment(task))
      _train_and_evaluate(loop)
    return watcher.exit_code


def _train_and_evaluate(loop: Loop) -> None:
  """The run itself; a signal ends it early with everything saved."""
  task = loop.task
  try:
    state = loop.restore()
    if int(state.step) < task.total_steps:
      loop.run.forget_evaluation()
    _introduce(task, state)
    loop.fit(state)
    loop.manager.wait()
    result = None
    if task.config.eval.test:
      console.say('Evaluating on the test part.')
      result = evaluate.finish(task, loop.manager, loop.run, loop.check)
  except preemption.Interrupted as reason:
    console.say(
      f'Stopped by {reason}; everything is saved: the same command resumes.'
    )
    return
  except errors.TrainingStopped:
    raise  # all processes have met it, at the same step
  except Exception as error:
    distributed.exit_on_error(error)
    raise
  if result is not None:
    console.say(f'\n{task.summary(result)}')
  console.say(
    f'Trained for {console.duration(loop.recorder.interval.seconds)}.'
  )


def check_alike(config: Any) -> None:
  """Judges whether all processes have the configuration of the first.

  Raises:
    UserError: in every process, if one of them has another.
  """
  first = distributed.broadcast_json(config_lib.to_json(config))
  here, theirs = (
    rules.flatten(c) for c in (config, config_lib.from_json(first))
  )
  rows = [k for k in sorted({*here, *theirs}) if here.get(k) != theirs.get(k)]
  different = distributed.gather(bool(rows))
  others = [i for i, differs in enumerate(different) if differs]
  if not others:
    return
  keys = f': here {", ".join(rows)} differ' if rows else ''
  raise errors.UserError(
    f'Processes {others[:20]} were started with another configuration than '
    f'process 0{keys}. Give every process the same command, but for '
    '--process_id.'
  )


def _check_names(
  folder: workdir_lib.Workdir, task_type: type[base.Task], names: list[str]
) -> None:
  """Raises UserError when the data set has other classes than the run's."""
  before = workdir_lib.read_json(folder.path, workdir_lib.CLASSES)
  recorded = (folder.path / workdir_lib.DIAGNOSTICS).exists()
  if recorded and before is not None and before != names:
    raise errors.UserError(
      f'The workdir {folder.path} was trained on the {len(before)} '
      f'{task_type.names_are} {", ".join(before[:5])}, ..., and the data set '
      f'now has {len(names)}: {", ".join(names[:5])}, .... Use another '
      '--workdir, or the data set as it was.'
    )


def write_report(folder: workdir_lib.Workdir) -> None:
  """Writes report.html, once there is a step to tell of, and says where.

  That it can't be written is a warning: it ends nothing.
  """
  recorded = (folder.path / workdir_lib.DIAGNOSTICS).exists()
  if jax.process_index() > 0 or not recorded:
    return
  try:
    console.say(f'Report: {report.write(folder.path)}')
  except errors.UserError as error:
    print(f'warning: {error}', file=sys.stderr)


def _environment(task: base.Task) -> dict[str, Any]:
  """versions.json: software, devices, and the model's size."""
  shapes = jax.tree.leaves(task.abstract_weights['params'])
  return {
    **workdir_lib.versions(
      [f'{d.platform}:{d.device_kind}' for d in jax.devices()]
    ),
    'parameters': sum(math.prod(x.shape) for x in shapes),
  }


def _introduce(task: base.Task, state: base.State) -> None:
  """Prints what is about to be trained, on what."""
  console.say(console.parameter_table(state.params))
  mesh = ', '.join(f'{k}={v}' for k, v in task.mesh.shape.items())
  console.say(
    f'{task.total_steps} steps of {task.config.batch_size} images, '
    f'{task.steps_per_epoch} an epoch; {task.mesh.size} x '
    f'{jax.devices()[0].device_kind} ({mesh}).'
  )
