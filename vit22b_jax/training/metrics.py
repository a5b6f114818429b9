"""Scores of a classifier over a whole set, however it was cut into batches.

>>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 3.0]])
>>> ranks(logits, np.array([0, 2])).tolist()
[0, 1]
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Labels = Int[np.ndarray, ' M'] | Float[np.ndarray, 'M C']


def ranks(
  logits: Float[Array, 'B C'], labels: Int[Array, ' B']
) -> Int[Array, ' B']:
  """Counts the classes that are ahead of each label.

  They have a higher logit, the same logit and a lower index, or not a number.
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1, mode='clip')
  tied = (logits == own) & (jnp.arange(logits.shape[-1]) < labels[:, None])
  return jnp.sum(~(logits <= own) | tied, axis=-1)


def scores(
  losses: Float[np.ndarray, ' M'],
  ranks: Int[np.ndarray, ' M'],
  probabilities: Float[np.ndarray, 'M C'],
  labels: Labels,
) -> dict[str, float | list[float]]:
  """Returns `num_examples loss`, and scores in [0, 1].

  Those are `top1 top5 auroc` or, where labels are 0 or 1 for each class, `map`
  and the list `average_precision`. An example is right at k when fewer than k
  classes are ahead; with fewer than five classes, top-5 is always right.
  """
  values = {
    'num_examples': len(labels),
    'loss': float(np.mean(losses, dtype=float)),
  }
  if labels.ndim == 2:
    found = average_precision(probabilities, labels)
    known = [x for x in found if np.isfinite(x)]
    mean = float(np.mean(known or np.nan))
    return values | {'map': mean, 'average_precision': found}
  most = min(5, probabilities.shape[1])
  return values | {
    'top1': float(np.mean(ranks < 1)),
    'top5': float(np.mean(ranks < most)),
    'auroc': auroc(probabilities, labels),
  }


def auroc(
  probabilities: Float[np.ndarray, 'M C'], labels: Int[np.ndarray, ' M']
) -> float:
  """Computes the area under the ROC curve, one class versus the rest.

  Averages over classes, over the whole set at once. A class that no label names
  has no such curve and is left out. (The paper averages over test batches and
  counts a class that a batch lacks as 0, which is why its values are lower.)

  Returns:
    A value in [0, 1]; NaN when fewer than two classes occur or a probability
    isn't finite.
  """
  # Here, because it takes a second that training need not wait for.
  from sklearn import metrics as sklearn_metrics

  present = np.unique(labels)
  if len(present) < 2 or not np.isfinite(probabilities).all():
    return float('nan')
  true, found = labels[:, None] == present, probabilities[:, present]
  return float(sklearn_metrics.roc_auc_score(true, found))


def average_precision(
  probabilities: Float[np.ndarray, 'M C'], targets: Float[np.ndarray, 'M C']
) -> list[float]:
  """Computes the area under the precision-recall curve of each class.

  Returns:
    Values in [0, 1]; NaN for a class without an example, and where a
    probability isn't finite.
  """
  from sklearn import metrics as sklearn_metrics

  finite = np.isfinite(probabilities).all()
  return [
    float(sklearn_metrics.average_precision_score(true, found))
    if finite and true.any()
    else float('nan')
    for true, found in zip(targets.T, probabilities.T, strict=True)
  ]
