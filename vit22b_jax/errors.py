"""Errors that a user can mend: one clear message, no traceback, exit code 2."""

import difflib
import errno
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """A mistake in the input: names the value, what was expected, what to do."""


class TrainingStopped(RuntimeError):
  """A step that must not be applied; the state before it is saved."""


def did_you_mean(value: Any, known: Iterable[Any]) -> str:
  """Suggests the name that `value` may be a typo of, to end a message with.

  >>> did_you_mean('learning_rat', ['learning_rate', 'warmup'])
  " Did you mean 'learning_rate'?"
  """
  names = [str(name) for name in known]
  near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
  return f' Did you mean {near[0]!r}?' if near else ''


def validate_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
  """Raises UserError, with a suggestion, for a value not in `choices`."""
  choices = list(choices)
  if value not in choices:
    raise UserError(
      f'{name}={value!r} is not one of {", ".join(map(str, choices))}.'
      f'{did_you_mean(value, choices)}'
    )


def printable(text: Any) -> str:
  r"""Escapes what a terminal would obey and what isn't UTF-8; lines stay.

  >>> printable('a\x1b[31m\udcff.jpg')
  'a\\x1b[31m\\udcff.jpg'
  """
  return ''.join(
    c if c.isprintable() or c == '\n' else c.encode('unicode_escape').decode()
    for c in str(text)
  )


def disk_remedy(error: Exception) -> str:
  """Returns what to do where a disk is full or read-only; '' for other errors.

  Args:
    error: an OSError, or one of TensorStore's, which names its cause in words.
  """
  number = getattr(error, 'errno', None)
  text = str(error)
  full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  denied = number in (errno.EACCES, errno.EPERM, errno.EROFS)
  if full or 'RESOURCE_EXHAUSTED' in text:
    return 'Make room or choose another --workdir. '
  if denied or 'PERMISSION_DENIED' in text:
    return 'Make it writable or choose another --workdir. '
  return ''
