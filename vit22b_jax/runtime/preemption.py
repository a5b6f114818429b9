"""Stops for SIGTERM and SIGINT at a step boundary, with everything saved.

    with preemption.Watcher() as watcher:
      for step in ...:
        ...
        watcher.started = True
        if watcher.should_stop(step): save and exit with watcher.exit_code

Python runs handlers between byte codes only: too late for a cluster's SIGTERM
that arrives during a compilation. So a thread hears of it by
`signal.set_wakeup_fd`, and ends the process there and then while there is
nothing to save. Watchers nest, and the innermost hears. Several processes leave
SIGTERM to jax, which stops them after the same step:
`multihost_utils.reached_preemption_sync_point`.
"""

import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """Leaves work because a signal asked for it."""


class Watcher:
  """Hears SIGTERM and SIGINT while it is open.

  Several processes stop `together`, after the same step.

  Attributes:
    started: whether there is something to save; while there isn't, a signal
      ends a single process at once.
    why: what is said then.
    signal: the signal to stop for, or None; several processes have agreed on
      it.
    exit: ends the process at once, with a code.
  """

  exit = staticmethod(os._exit)

  def __init__(self, together: bool = False):
    self.started = False
    self.why = 'there was nothing to save yet'
    self.signal: signal.Signals | None = None
    self._together = together

  def __enter__(self) -> 'Watcher':
    handlers, write = {signal.SIGINT: _pass_on}, -1
    if not self._together:
      self._read, self._write = os.pipe()
      os.set_blocking(self._write, False)
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
      handlers, write = dict.fromkeys(_SIGNALS, self._handle), self._write
    self._previous = {s: signal.signal(s, h) for s, h in handlers.items()}
    self._previous_fd = signal.set_wakeup_fd(write)
    return self

  def __exit__(self, *_) -> None:
    signal.set_wakeup_fd(self._previous_fd)
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if not self._together:
      os.write(self._write, b'\0')
      self._thread.join()
      os.close(self._read)
      os.close(self._write)

  @property
  def exit_code(self) -> int:
    """Returns 128 + the signal: 143 for SIGTERM, 130 for SIGINT; else 0."""
    return 128 + self.signal if self.signal else 0

  def should_stop(self, step: int) -> bool:
    """Returns whether to save and stop after this step, the one just done.

    Several processes call this after every step, and all get True after the
    same one.
    """
    if self._together:
      from jax.experimental import multihost_utils  # listening precedes jax

      if multihost_utils.reached_preemption_sync_point(step):
        self.signal = signal.SIGTERM
    return self.signal is not None

  def _handle(self, number, frame):
    del frame
    self.signal = signal.Signals(number)

  def _watch(self) -> None:
    while number := os.read(self._read, 1)[0]:
      if number not in _SIGNALS:
        continue
      self.signal = signal.Signals(number)
      if not self.started:
        _tell(f'Stopped by {self.signal.name}: {self.why}.')
        self.exit(self.exit_code)
      _tell(f'{self.signal.name}: saving everything, then stopping.')


def _pass_on(number, frame) -> None:
  """Makes SIGINT the SIGTERM that jax listens for."""
  del number, frame
  os.kill(os.getpid(), signal.SIGTERM)


def _tell(text: str) -> None:
  print(f'\n{text}', file=sys.stderr, flush=True)
