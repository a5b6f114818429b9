"""`--mode=export`: a classifier's weights under timm's names.

path = export.run(task, variables, run)
"""

from typing import Any

import jax
from etils import epath

from vit22b_jax.runtime import workdir
from vit22b_jax.tasks import classification
from vit22b_jax.weights import export


def run(
  task: classification.Classification, variables: Any, folder: workdir.Workdir
) -> epath.Path:
  """Writes model.safetensors into a run's folder; returns its path.

  Args:
    task: the run's task; needs no data.
    variables: the model's variables.
    folder: the run's folder.

  Raises:
    UserError: timm has no such model.
  """
  path = folder.path / 'model.safetensors'
  export.write(
    path,
    task.model,
    jax.device_get(variables['params']),
    {'class_names': ','.join(task.names)},
    task.config.data.image_size,
  )
  return path
