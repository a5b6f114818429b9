"""Rows of a run: what each step's scalars become in the workdir's files.

recorder = records.Recorder(task, run)
row = recorder.step(step, scalars)    # a row of diagnostics.csv
recorder.log(step, seconds_waited)    # a row of metrics.jsonl: the means
recorder.event(step, row, monitor)    # a line of events.jsonl
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from vit22b_jax.runtime import console, flops
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.training import diagnostics


@dataclasses.dataclass
class Interval:
  """What happened since the last row of metrics; saved with each checkpoint.

  Attributes:
    sums: of the training scalars.
    rows: how many steps they are the sums of.
    seconds: time spent in the loop so far, since the first start of the run.
  """

  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  rows: int = 0
  seconds: float = 0.0


class Recorder:
  """Writes down what steps did.

  Args:
    task: names the scalars.
    run: the run's folder.

  Attributes:
    interval: see `Interval`; set it when a run resumes.
  """

  def __init__(self, task: Any, run: workdir_lib.Workdir):
    self._task = task
    self._run = run
    self.interval = Interval()
    self._last: dict[str, float] = {}
    self._start: float | None = None

  # --- Clock ---------------------------------------------------------------

  def start_clock(self, waited: float) -> None:
    """Measures speed from now on.

    Args:
      waited: seconds that steps waited for data so far, in all.
    """
    self._start = time.monotonic()
    self._waited = waited
    self._first = self.interval.rows

  def leave_out(self, seconds: float) -> None:
    """Time that steps didn't take: an evaluation, a save."""
    if self._start is not None:
      self._start += seconds

  def speed(self) -> float | None:
    """Images a second since the clock started; None before a whole step."""
    if self._start is None or self.interval.rows == self._first:
      return None
    seconds = max(time.monotonic() - self._start, 1e-9)
    steps = self.interval.rows - self._first
    return steps * self._task.config.batch_size / seconds

  # --- Rows ----------------------------------------------------------------

  def step(self, step: int, scalars: Float[Array, 'M']) -> dict[str, float]:
    """Adds a row to diagnostics.csv; waits until the step has ended.

    Returns:
      The step's scalars by name.
    """
    task = self._task
    values = np.asarray(scalars).tolist()
    row = dict(zip(task.scalar_names, values, strict=True))
    self._run.diagnostics(
      step, {name: row[name] for name in task.diagnostic_names}
    )
    return row

  def count(self, row: dict[str, float]) -> str:
    """Adds an applied step to the interval; what the progress line says."""
    interval = self.interval
    for name in ('loss', *self._task.logged):
      interval.sums[name] = interval.sums.get(name, 0.0) + row[name]
    interval.rows += 1
    self._last = row
    return f'loss {row["loss"]:.3f}{self._images()}'

  def log(self, step: int, waited: float) -> str:
    """Adds a row of means to metrics.jsonl, and starts the next interval.

    Args:
      step: the last one of the interval.
      waited: seconds that steps waited for data so far, in all.

    Returns:
      The row in words.
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
    self._run.metrics(step, row)
    self._run.flush()
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
    """Writes an explosion down: when, how far, what moved first and where.

    Args:
      step: when.
      row: its scalars by name.
      monitor: the detector after the step, with the window before it.
      message: what follows from it, if anything.
    """
    names = self._task.signal_names
    found = diagnostics.explain(
      np.asarray(monitor.history),
      names,
      step - 1,
      np.array([row[name] for name in names]),
    )
    settings = self._task.config.diagnostics
    kind = 'explosion'
    if not row['verdict/finite']:
      kind = 'non_finite'
    elif row['verdict/transient']:
      kind = 'transient'
    action = settings.on_explosion if kind == 'explosion' else 'record'
    event = dict(
      step=step,
      kind=kind,
      **found,
      max_logit=row['max_logit'],
      max_abs_grad=row['max_abs_grad'],
      zscore={
        name: row[f'verdict/zscore_{name}'] for name in diagnostics.JUDGED
      },
      threshold={
        'max_logit': settings.max_logit,
        'max_abs_grad': settings.max_abs_grad,
      },
      action='halt' if kind == 'non_finite' else action,
      message=message,
    )
    self._run.event(event)
    console.say(
      f'Step {step}: {kind}, largest logit {row["max_logit"]:.4g}, largest '
      f'gradient entry {row["max_abs_grad"]:.4g}; first to move: '
      f'{found["moved_first"] or "nothing before"}, layer '
      f'{found["layer"] or "none stands out"}.'
    )
