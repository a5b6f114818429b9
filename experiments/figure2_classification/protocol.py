"""AUROC as the paper has it: the mean over test batches, absent classes are 0.

    python -m experiments.figure2_classification.protocol WORKDIR

Prints it for a finished run, whose checkpoints are still there.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

BATCH = 128
_SEED = 0  # of the order of test images


def batch_auroc(
  probabilities: Float[np.ndarray, 'M C'], labels: Int[np.ndarray, ' M']
) -> float:
  """Mean over batches of the mean over classes, 0 for those that aren't there.

  Args:
    probabilities: softmax probabilities.
    labels: in [0, C).
  """
  from sklearn import metrics

  order = np.random.default_rng(_SEED).permutation(len(labels))
  classes = range(probabilities.shape[1])
  found = []
  for start in range(0, len(order), BATCH):
    rows = order[start : start + BATCH]
    areas = [
      metrics.roc_auc_score(labels[rows] == c, probabilities[rows, c])
      if (labels[rows] == c).any()
      else 0.0
      for c in classes
    ]
    found.append(np.mean(areas))
  return float(np.mean(found))


def predict(
  workdir: str,
) -> tuple[Float[np.ndarray, 'M C'], Int[np.ndarray, ' M']]:
  """Softmax probabilities of the test part, and its labels."""
  import tensorflow_datasets as tfds

  import vit22b_jax
  from vit22b_jax.report import workdir as workdir_lib

  model, variables = vit22b_jax.load(workdir)
  data = workdir_lib.read(workdir).config['data']
  folder = data['dir'] or os.environ.get('TFDS_DATA_DIR')
  test = tfds.load(data['name'], split='test', data_dir=folder, batch_size=-1)
  images, labels = (np.asarray(test[key]) for key in ('image', 'label'))
  mean, deviation = (np.asarray(data[key]) for key in ('mean', 'std'))

  @jax.jit
  def probabilities(part):
    scaled = ((part / 255 - mean) / deviation).astype(jnp.float32)
    return jax.nn.softmax(model.apply(variables, scaled))

  found = [
    jax.device_get(probabilities(images[start : start + 250]))
    for start in range(0, len(images), 250)
  ]
  return np.concatenate(found), labels


if __name__ == '__main__':
  print(batch_auroc(*predict(sys.argv[1])))
