"""Finds what can be trained by the name that a config's `task` gives."""

from vit22b_jax import errors
from vit22b_jax.tasks import base, classification, cyclegan

TASKS: dict[str, type[base.Task]] = {
  'classification': classification.Classification,
  'translation': cyclegan.CycleGAN,
}


def named(name: str) -> type[base.Task]:
  """Returns the task of that name.

  Raises:
    UserError: there is none.
  """
  errors.validate_choice('task', name, TASKS)
  return TASKS[name]
