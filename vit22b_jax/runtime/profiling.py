"""Traces every operation of a window of steps, to see where time goes.

    window = profiling.Window('10-15', total_steps)
    window.before(step, folder)     # around each step
    window.after(step, state)

    >>> window = Window('10-15', total_steps=100)
    >>> window.first, window.last
    (10, 15)

Writes an xplane trace, as TensorBoard's profiler (xprof) and Perfetto read it:
https://docs.jax.dev/en/latest/profiling.html. (clu's periodic_actions.Profile
imports TensorFlow, and ends a window before its steps have run.)
"""

from typing import Any

import jax
from etils import epath

from vit22b_jax import errors
from vit22b_jax.runtime import console

FOLDER = 'profile'


class Window:
  """Steps to trace, into `folder` while they last; none if last < first.

  Args:
    text: the config's `profile`: 'FIRST-LAST', one step, or '' for none.
    total_steps: of the run, where known.

  Raises:
    UserError: no step, or not within the `total_steps`.
  """

  def __init__(self, text: str, total_steps: int | None = None):
    self.folder: epath.Path | None = None
    self.first, self.last = 1, 0
    if not text:
      return
    start, _, end = text.partition('-')
    self.first, self.last = int(start), int(end or start)
    if not 1 <= self.first <= self.last:
      raise errors.UserError(
        f'profile={text!r}: expected the first and the last step to trace, as '
        "in profile='10-15', or '' for none. Steps count from 1; the first one "
        'of a start compiles.'
      )
    if total_steps is not None and self.last > total_steps:
      raise errors.UserError(
        f'profile={text!r} is not within the {total_steps} steps of the run.'
      )

  def before(self, step: int, workdir: epath.Path) -> None:
    """Starts tracing on process 0, if `step` is the first to trace."""
    inside = self.first <= step <= self.last
    if inside and self.folder is None and jax.process_index() == 0:
      self.folder = workdir / FOLDER
      jax.profiler.start_trace(self.folder)

  def after(self, step: int, state: Any) -> None:
    """Ends tracing, once the last step has; says how to look at it."""
    if self.folder is None or step < self.last:
      return
    jax.block_until_ready(state)
    self.close()

  def close(self) -> None:
    """Ends tracing, however many steps there were."""
    if self.folder is None:
      return
    jax.profiler.stop_trace()
    console.say(
      f'Trace of steps {self.first} to {self.last}: {self.folder}. To look at '
      f'it: pip install xprof tensorboard; tensorboard --logdir={self.folder}; '
      'or open its *.trace.json.gz at https://ui.perfetto.dev.'
    )
    self.folder, self.last = None, 0
