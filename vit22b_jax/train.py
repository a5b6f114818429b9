"""Trains, evaluates and reports: one loop for every task.

    code = train.run(config, workdir, mesh)

`run` reads in the order in which things happen: set up, restore, train, finish;
`fit` is the loop. Steps are counted from 1: row n of diagnostics.csv is what
step n did, and checkpoint n holds the state after it.
"""

import contextlib
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from vit22b_jax import durations, errors
from vit22b_jax.modes import evaluate, setup
from vit22b_jax.runtime import (
  console,
  distributed,
  host,
  preemption,
  profiling,
  records,
  sharding,
)
from vit22b_jax.tasks import base
from vit22b_jax.training import diagnostics

_CURES = (
  'A lower optim.learning_rate, a longer optim.warmup, optim.clip_norm, '
  'model.dtype=float32 and, for classifiers, model.qk_norm or model.pre_norm '
  'are the usual cures.'
)


def run(
  config: ConfigDict, path: epath.PathLike, mesh: jax.sharding.Mesh
) -> int:
  """Trains, evaluates and reports; resumes what the workdir holds.

  Returns:
    The exit code: 0, or 128 + the number of the signal that asked to stop.

  Raises:
    UserError: the input is wrong.
    TrainingStopped: a loss wasn't finite, or exploded under 'halt'.
  """
  together = jax.process_count() > 1
  with preemption.Watcher(together) as watcher, contextlib.ExitStack() as stack:
    # Set up: whose folder it is, the data, the task, checkpoints and rows.
    r = setup.open_run(config, path, mesh, watcher, stack)
    try:
      # Restore: the newest checkpoint, else `init_from`, else the seed.
      state = setup.restore(r)
      setup.introduce(r.task)
      # Train: to the end of the run, or of its patience.
      fit(r, state)
      # Finish: the best checkpoint on the test part.
      finish(r)
    except preemption.Interrupted as reason:
      console.say(
        f'Stopped by {reason}; everything is saved: the same command resumes.'
      )
    except errors.TrainingStopped:
      raise  # all processes have met it, at the same step
    except Exception as error:
      distributed.exit_on_error(error)
      raise
    return watcher.exit_code


def fit(r: setup.Run, state: base.State) -> base.State:
  """Trains to the end of the run, or of its patience; returns the last state.

  Raises:
    preemption.Interrupted: a signal asked to stop; everything is saved.
    TrainingStopped: a loss wasn't finite, or exploded under 'halt'.
  """
  task, config, due = r.task, r.task.config, setup.calendar(r.task)
  start, total = int(state.step), task.total_steps
  patience, scores = config.eval.early_stop, r.manager.scores
  r.saved_at = time.monotonic()
  task.evaluator.poll = functools.partial(leave_if_asked, r)
  if start and due(start).evaluate:
    validate(r, state, start)
  if not start:
    task.sample(state, r.folder)
  window = profiling.Window(config.profile, total)
  bar = console.Progress(total, start)
  with contextlib.closing(window), contextlib.closing(bar):
    for step in range(start + 1, total + 1):
      if evaluate.out_of_patience(scores, patience):
        break
      position, batch = r.batches.get_state(), next(r.batches)
      window.before(step, r.folder.path)
      with sharding.mesh_context(task.mesh), bar.compiling(step == start + 1):
        state, scalars = task.train_step(state, batch)
      window.after(step, state)

      # Scalars are read one step late: the devices don't wait for the host.
      record(r, state, bar)
      r.recorder.pending = records.Pending(step, scalars, batch, position)
      if step == start + 1:
        record(r, state, bar)  # waits for the first step, which compiled
        start_clocks(r, bar)

      now, stop_now = due(step), r.watcher.should_stop(step)
      save_now = now.save or stop_now or setup.minutes_are_up(r, now.log)
      if any(now) or save_now:
        record(r, state, bar)
      if now.log:
        text = r.recorder.log(step, r.batches.seconds_waited)
        if not bar.shown:
          console.say(f'{text}{bar.eta()}')
      if now.sample:
        with r.recorder.paused():
          task.sample(state, r.folder)
      if stop_now:
        save(r, state, step, wait=True)
        raise preemption.Interrupted(r.watcher.signal.name)
      improved = now.evaluate and validate(r, state, step)
      if save_now or improved or evaluate.out_of_patience(scores, patience):
        save(r, state, step)
  return state


def start_clocks(r: setup.Run, bar: console.Progress) -> None:
  """Starts to measure speeds; from here on a signal finds something to save."""
  host.return_freed_memory()
  r.watcher.started = True
  seconds = time.monotonic() - host.STARTED
  console.say(f'First step done {seconds:.1f} s after start.')
  r.recorder.start_clock(r.batches.seconds_waited)
  bar.start_clock()


def finish(r: setup.Run) -> None:
  """Evaluates the weights that the run has come to."""
  r.manager.wait()
  if r.task.config.eval.test:
    console.say('Evaluating on the test part.')
    result = evaluate.finish(r.task, r.manager, r.folder)
    console.say(f'\n{r.task.evaluator.summary(result)}')
  seconds = durations.in_words(r.recorder.interval.seconds)
  console.say(f'Trained for {seconds} (training steps, without validation).')


def record(r: setup.Run, state: base.State, bar: console.Progress) -> None:
  """Reads the scalars of a step, if any wait; `state` is after it, or one more.

  Raises:
    TrainingStopped: the step must not be applied.
  """
  pending, r.recorder.pending = r.recorder.pending, None
  if pending is None:
    return
  row = r.recorder.row(pending)
  if row['verdict/stopped']:
    stop(r, state, pending, row)
  if row['verdict/onset']:
    r.recorder.event(pending.step, row, state.monitor)
  bar.update(r.recorder.count(row))


def stop(
  r: setup.Run,
  state: base.State,
  pending: records.Pending,
  row: dict[str, float],
) -> None:
  """Saves the state before a step that must not be applied, and raises."""
  step, monitor = pending.step, state.monitor
  r.batches.set_state(pending.position)
  going = monitor.replace(stopped=jnp.zeros_like(monitor.stopped))
  save(r, state.replace(monitor=going), step - 1, wait=True)
  what = 'an explosion, and diagnostics.on_explosion is "halt"'
  if not row['verdict/finite']:
    layer = locate(r, state, pending)
    what = f'the loss is {row["loss"]:.4g}; first non-finite: {layer}'
  elif row['verdict/stuck']:
    what = f'the last {diagnostics.STUCK_STEPS} steps were all skipped'
  r.recorder.event(step, row, monitor, what)
  raise errors.TrainingStopped(
    f'Step {step}: {what}. The state before that step is checkpoint '
    f'{step - 1} in {r.folder.path}; diagnostics.csv and events.jsonl there '
    f'tell what came before. {_CURES}'
  )


def locate(r: setup.Run, state: base.State, pending: records.Pending) -> str:
  """Names the layer that is non-finite first, or says why it can't be found.

  Another program is compiled for it, when memory may be full.
  """
  try:
    return r.task.locate_nonfinite(state, pending.batch)
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() > 1:
      raise  # others may not have met it, and would wait
    return f'not found ({str(error).splitlines()[0][:100]})'


def save(
  r: setup.Run, state: base.State, step: int, *, wait: bool = False
) -> None:
  """Saves a checkpoint, after the rows that it stands on; `wait` for the disk.

  The state may be donated to the next step as soon as this returns.
  """
  with r.recorder.paused():
    r.folder.flush()
    r.manager.save(
      step,
      state.to_dict(),
      meta={
        'data': r.batches.get_state(),
        'progress': dataclasses.asdict(r.recorder.interval),
        'config': r.task.config.to_dict(),
      },
    )
    if wait:
      r.manager.wait()
  r.saved_at = time.monotonic()


def validate(r: setup.Run, state: base.State, step: int) -> bool:
  """Evaluates the validation part, once a step; returns if it is the best."""
  if step in r.manager.scores or r.task.evaluator.missing:
    return False
  if not r.polls:  # compiling comes next, see `leave_if_asked`
    save(r, state, step, wait=True)
  task, started = r.task, r.watcher.started
  with r.recorder.paused():
    try:
      variables, _ = task.variables(state.to_dict())
      found = task.evaluator.validate(variables)
    except (preemption.Interrupted, errors.UserError) as error:
      if isinstance(error, errors.UserError) and jax.process_count() > 1:
        raise  # others may not have met it, and couldn't save
      save(r, state, step, wait=True)
      raise
    finally:
      r.watcher.started = started
  host.return_freed_memory()
  found = distributed.broadcast_json(found)
  return evaluate.record(task, r.folder, step, found, r.manager.scores)


def leave_if_asked(r: setup.Run) -> None:
  """Leaves an evaluation, between two batches, once a signal was heard.

  While the first batch compiles, for which everything has been saved, a signal
  ends the process at once. Several processes finish the evaluation.
  """
  if r.watcher.signal:
    raise preemption.Interrupted(r.watcher.signal.name)
  r.polls += 1
  r.watcher.why = 'everything was saved, and the same command resumes'
  r.watcher.started = r.polls > 1
