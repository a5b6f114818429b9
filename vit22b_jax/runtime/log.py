"""Shows the package's log on stderr: `log.show()`. Never imports jax."""

import logging as python_logging
import pathlib
import sys
from typing import Any

from absl import logging

_PACKAGE = str(pathlib.Path(__file__).parents[1])


class _PlainWords(python_logging.Formatter):
  """Formats `warning: message`, and information as the message alone."""

  def format(self, record):
    if _is_of_devices(record):
      # jax goes on without them, and the message says enough.
      record.levelname, record.exc_info = 'WARNING', None
    text = super().format(record)
    if record.levelno > python_logging.INFO:
      text = f'{record.levelname.lower()}: {text}'
    return text


def _is_of_devices(record: python_logging.LogRecord) -> bool:
  """Returns whether jax says which devices it can't use."""
  return record.name == 'jax._src.xla_bridge'


def _is_wanted(record: python_logging.LogRecord) -> bool:
  if record.pathname.startswith(_PACKAGE):
    return True
  if _is_of_devices(record):
    return record.levelno >= python_logging.WARNING
  # What Orbax logs as errors it raises too, where it becomes one message.
  raised = any(f'/{x}/' in record.pathname for x in ('orbax', 'asyncio'))
  return record.levelno >= python_logging.ERROR and not raised


def _report_unraisable(found: Any) -> None:
  # TensorStore's futures outlive the event loop of a save that failed.
  if str(found.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(found)


def show() -> None:
  """Shows the package's log on stderr in plain words, of others only errors."""
  sys.unraisablehook = _report_unraisable
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(_PlainWords())
  handler.addFilter(_is_wanted)
