"""Turns the scalars of each step into rows of the workdir's files.

recorder = records.Recorder(task, folder)
recorder.pending = records.Pending(step, scalars, batch, position)
row = recorder.row(recorder.pending)  # a step later: a row of diagnostics.csv
recorder.log(step, seconds_waited)    # a row of metrics.jsonl: the means
recorder.event(step, row, monitor)    # a line of events.jsonl
"""

import contextlib
import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from vit22b_jax.runtime import console, flops
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.training import diagnostics, explain


@dataclasses.dataclass
class Interval:
  """Sums up the steps since the last row of metrics; saved with checkpoints."""

  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  rows: int = 0  # how many steps they are the sums of
  seconds: float = 0.0  # spent in the loop, since the first start of the run


class Pending(NamedTuple):
  """Holds a step whose scalars nobody has read, with what it was made of."""

  step: int
  scalars: Float[Array, 'M']  # on the devices, which may still compute them
  batch: dict[str, Array]
  position: dict[str, Any]  # of the batches, before it


class Recorder:
  """Writes rows of a run, one step late: no device waits for the host.

  Attributes:
    pending: the step that waits to be read; None when none does.
    interval: see `Interval`; set it when a run resumes.
  """

  def __init__(self, task: Any, folder: workdir_lib.Workdir):
    self._task = task
    self._folder = folder
    self.pending: Pending | None = None
    self.interval = Interval()
    self._last: dict[str, float] = {}
    self._start: float | None = None

  def start_clock(self, waited: float) -> None:
    """Measures speed from now on; steps `waited` so long for data before."""
    self._start = time.monotonic()
    self._waited = waited
    self._first = self.interval.rows

  @contextlib.contextmanager
  def paused(self):
    """Leaves what is done meanwhile, as an evaluation, out of the speed."""
    start = time.monotonic()
    yield
    if self._start is not None:
      self._start += time.monotonic() - start

  def speed(self) -> float | None:
    """Returns images a second since the clock started; None at first."""
    if self._start is None or self.interval.rows == self._first:
      return None
    seconds = max(time.monotonic() - self._start, 1e-9)
    steps = self.interval.rows - self._first
    return steps * self._task.config.batch_size / seconds

  def row(self, pending: Pending) -> dict[str, float]:
    """Adds a row to diagnostics.csv, of a step that has ended; returns it."""
    names = self._task.scalars
    values = np.asarray(pending.scalars).tolist()
    row = dict(zip(names.all, values, strict=True))
    self._folder.diagnostics(
      pending.step, {name: row[name] for name in names.columns}
    )
    return row

  def count(self, row: dict[str, float]) -> str:
    """Adds a step, applied or not, to the interval; returns the progress."""
    interval = self.interval
    for name in ('loss', *self._task.scalars.logged):
      interval.sums[name] = interval.sums.get(name, 0.0) + row[name]
    interval.rows += 1
    self._last = row
    return f'loss {row["loss"]:.3f}{self._images()}'

  def log(self, step: int, waited: float) -> str:
    """Adds a row of means up to `step` to metrics.jsonl; returns it in words.

    Steps `waited` so many seconds for data so far, in all.
    """
    task, interval = self._task, self.interval
    mean = {k: v / interval.rows for k, v in interval.sums.items()}
    row = {
      'epoch': step / task.steps_per_epoch,
      'train/loss': mean.pop('loss'),
      **mean,
      'train/learning_rate': self._last['train/learning_rate'],
    }
    images, speed = self._images(), self.speed()
    seconds = time.monotonic() - self._start
    if speed is not None:  # not after the first step alone, which compiled
      device = jax.devices()[0]
      row |= {
        'perf/images_per_second': speed,
        'perf/mfu': flops.mfu(
          task.flops_per_image * speed, device, jax.device_count()
        ),
        'perf/input_wait_fraction': (waited - self._waited) / seconds,
      }
    self.interval = Interval(seconds=interval.seconds + seconds)
    self._folder.metrics(step, row)
    self._folder.flush(remote=False)
    self.start_clock(waited)
    return (
      f'step {step}/{task.total_steps}  loss {row["train/loss"]:.4f}{images}'
    )

  def _images(self) -> str:
    speed = self.speed()
    return '' if speed is None else f', {speed:.3g} images/s'

  def event(
    self,
    step: int,
    row: dict[str, float],
    monitor: diagnostics.Monitor,
    message: str = '',
  ) -> None:
    """Writes a line of events.jsonl: when, how far, what moved first, where.

    `row` are the step's scalars; `monitor` has the window before it, and
    `message` says what follows.
    """
    signals = {name: row[name] for name in self._task.scalars.signals}
    found = explain.first_to_move(monitor.history, signals, step - 1)
    settings = self._task.config.diagnostics
    kind = 'explosion'
    overflows = row['verdict/stuck'] and not np.isfinite(row['max_abs_grad'])
    if overflows or not row['verdict/finite']:
      kind = 'non_finite'
    elif row['verdict/transient']:
      kind = 'transient'
    action = settings.on_explosion if kind == 'explosion' else 'record'
    event = dict(
      step=step,
      kind=kind,
      **found,
      **{key: row[key] for key in ('max_logit', *diagnostics.JUDGED)},
      zscore={
        name: row[f'verdict/zscore_{name}']
        for name in ('max_logit', 'max_abs_grad')
      },
      threshold={
        'max_logit': settings.max_logit,
        'max_abs_grad': settings.max_abs_grad,
      },
      action='halt' if row['verdict/stopped'] else action,
      message=message,
    )
    self._folder.event(event)
    console.say(
      f'Step {step}: {kind}, largest absolute logit '
      f'{row["max_abs_logit"]:.4g}, largest gradient entry '
      f'{row["max_abs_grad"]:.4g}; first to move: '
      f'{found["moved_first"] or "nothing before"}, layer '
      f'{found["layer"] or "none stands out"}.'
    )
