"""Errors that a user can mend: one clear message, no traceback, exit code 2."""


class UserError(ValueError):
  """A mistake in the input: names the value, what was expected, what to do."""


class TrainingStopped(RuntimeError):
  """A step that must not be applied; the state before it is saved."""
