"""What can be trained, by the name that a config's `task` gives."""

from vit22b_jax import errors
from vit22b_jax.tasks import base, classification, translation

TASKS: dict[str, type[base.Task]] = {
  'classification': classification.Classification,
  'translation': translation.Translation,
}


def named(name: str) -> type[base.Task]:
  """The task of that name.

  Raises:
    UserError: there is none.
  """
  if name not in TASKS:
    raise errors.UserError(
      f'task={name!r} is not one of {", ".join(TASKS)}.'
      f'{errors.did_you_mean(name, TASKS)}'
    )
  return TASKS[name]
