"""Lists what can be trained by the names that a config's `task` gives."""

from vit22b_jax.tasks import base, classification, cyclegan

TASKS: dict[str, type[base.Task]] = {
  'classification': classification.Classification,
  'translation': cyclegan.CycleGAN,
}
