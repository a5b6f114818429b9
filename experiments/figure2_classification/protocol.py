"""AUROC as the paper has it: a mean over test batches, absent classes are 0."""

import numpy as np
from jaxtyping import Float, Int

BATCH = 128
_SEED = 0  # of the order of test images


def batch_auroc(
  probabilities: Float[np.ndarray, 'M C'], labels: Int[np.ndarray, ' M']
) -> float:
  """Averages over batches the mean over classes, 0 for those not there.

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
