"""What can be trained, by the name that a config's `task` gives."""

from vit22b_jax.tasks import classification

TASKS = {'classification': classification.Classification}
