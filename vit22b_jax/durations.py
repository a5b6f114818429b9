"""Durations as people write them: steps, epochs or a part of the run.

    >>> steps('3 epochs', steps_per_epoch=351)
    1053
    >>> steps('10%', steps_per_epoch=351, total_steps=70_200)
    7020
    >>> steps('500', steps_per_epoch=351)
    500

The config holds them as text, so that another batch size or another length
of the run changes what follows from them and nothing else.
"""

import re

from vit22b_jax import errors

_FORM = re.compile(r'([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(steps?|epochs?|%|)')
_EXPECTED = (
  "expected steps, epochs or percent: 500, '500 steps', '3 epochs' or '10%'"
)
_MOST = 2**31 - 1  # the step counter is an int32


def steps(
  value: int | str,
  *,
  steps_per_epoch: int,
  total_steps: int | None = None,
) -> int:
  """Returns the optimizer steps that `value` stands for, rounded.

  Args:
    value: a number of steps, or text as above; '1.5 epochs' is fine too.
    steps_per_epoch: optimizer steps in one pass over the training part.
    total_steps: length of the run; None where a percentage makes no sense,
      as in the length of the run itself.

  Returns:
    Steps, at least 0. A duration above 0 is at least one step, so that '1%' of
    a short run isn't never.

  Raises:
    UserError: `value` doesn't parse, is negative or a fraction of a step, is a
      percentage without `total_steps` or above 100 %, or is more than an int32
      counts.
  """
  number, unit = _parse(value)
  if unit == 'epoch':
    number *= steps_per_epoch
  elif unit == '%':
    if total_steps is None:
      raise errors.UserError(
        f'duration {value!r}: the length of the run can not be a part of '
        "itself; give steps or epochs, as in '200 epochs'"
      )
    if number > 100:
      raise errors.UserError(f'duration {value!r}: at most 100 % of the run')
    number *= total_steps / 100
  if number > _MOST:
    shown = f'{value!s:.40}'
    raise errors.UserError(f'duration {shown!r}: at most {_MOST} steps')
  return max(round(number), int(number > 0))


def in_words(seconds: float) -> str:
  """Returns a time as people say it.

  >>> in_words(3725), in_words(1324), in_words(59.4)
  ('1 h 2 min', '22 min 4 s', '59 s')
  """
  minutes, rest = divmod(max(round(seconds), 0), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {rest} s' if minutes else f'{rest} s'


def validate(
  value: int | str, name: str, *, percent: bool = True, positive: bool = False
) -> None:
  """Judges the duration of the key `name` before an epoch's length is known.

  Args:
    value: as in `steps`.
    name: of the config's key.
    percent: whether a part of the run is allowed.
    positive: whether 0 is refused, as for how often something happens.

  Raises:
    UserError: `value` can't be turned into steps, or is 0 where it must not be.
  """
  try:
    found = steps(value, steps_per_epoch=1, total_steps=1 if percent else None)
  except errors.UserError as error:
    raise errors.UserError(f'{name}: {error}') from None
  if positive and not found:
    raise errors.UserError(f'{name}={value!r} must be above 0 steps.')


def _parse(value: int | str) -> tuple[float, str]:
  """Splits `value` into a number and 'step', 'epoch' or '%'."""
  match = _FORM.fullmatch(str(value).strip())
  if not match or type(value) not in (int, str):
    raise errors.UserError(f'duration {value!r}: {_EXPECTED}')
  number = float(match[1])
  unit = match[2].rstrip('s') or 'step'
  if unit == 'step' and not number.is_integer() and number <= _MOST:
    raise errors.UserError(f'duration {value!r}: {_EXPECTED}')
  return number, unit
