"""SIGTERM and SIGINT: stop at the next step boundary with everything saved.

    with preemption.Watcher() as watcher:
      ...first step...
      watcher.started = True
      if watcher.signal: save and exit with watcher.exit_code

A cluster sends SIGTERM some seconds before it takes the machine. Python runs
its handlers between byte codes only, so one that arrives during a compilation
(minutes for large models) would be late. So a thread hears of the signal
through `signal.set_wakeup_fd`, and ends the process there and then as long as
there is nothing to save. Watchers nest, and the innermost hears: the command
line has one around everything.
"""

import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """Work was left because a signal asked for it."""


class Watcher:
  """Hears SIGTERM and SIGINT while it is open.

  Attributes:
    started: whether there is something to save; while there isn't a signal
      ends the process at once.
    why: what is said then.
    signal: the signal that arrived, or None.
    agreed: the signal that several processes have agreed to stop for.
    exit: ends the process at once, with a code.
  """

  exit = staticmethod(os._exit)

  def __init__(self):
    self.started = False
    self.why = 'there was nothing to save yet'
    self.signal: signal.Signals | None = None
    self.agreed: signal.Signals | None = None

  def __enter__(self) -> 'Watcher':
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
    self._previous_fd = signal.set_wakeup_fd(self._write)
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    signal.set_wakeup_fd(self._previous_fd)
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    os.write(self._write, b'\0')
    self._thread.join()
    os.close(self._read)
    os.close(self._write)

  @property
  def exit_code(self) -> int:
    """128 + the signal's number, as shells count: 143 SIGTERM, 130 SIGINT."""
    found = self.agreed or self.signal
    return 128 + found if found else 0

  def check(self) -> None:
    """Raises Interrupted once a signal has arrived."""
    if self.signal:
      raise Interrupted(self.signal.name)

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


def _tell(text: str) -> None:
  print(f'\n{text}', file=sys.stderr, flush=True)
