"""Masked, mergeable sums of loss, top-1 and top-5; scores of a whole set.

    sums = metrics.batch_sums(logits, labels, losses, mask)   # inside jit
    total = metrics.merge(total, sums)                        # on the host
    metrics.means(total)   # {'num_examples', 'loss', 'top1', 'top5'}

A padded example has mask 0 and counts nowhere, so the means over a set don't
depend on how it was cut into batches:

    >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [9.0, 9.0]])
    >>> labels, losses = jnp.array([0, 0, 1]), jnp.array([0.5, 1.5, 7.0])
    >>> means(batch_sums(logits, labels, losses, jnp.array([1.0, 1.0, 0.0])))
    {'num_examples': 2, 'loss': 1.0, 'top1': 0.5, 'top5': 1.0}
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Sums = dict[str, Float[Array, '']]


def batch_sums(
  logits: Float[Array, 'B C'],
  labels: Int[Array, ' B'] | Float[Array, 'B C'],
  losses: Float[Array, ' B'],
  mask: Float[Array, ' B'],
) -> Sums:
  """Sums metrics over the examples whose mask is 1.

  An example is right at k when fewer than k classes are ahead of its label: of
  a higher logit, of the same logit and a lower index, or not a number. With
  fewer than five classes, top-5 is top-C, which is always right.

  Returns:
    `count` and the sums `loss` and, where an image has one class and not 0 or 1
    for each, `top1` and `top5`.
  """

  def total(values):
    return jnp.sum(jnp.where(mask > 0, values, 0.0))

  sums = {'count': total(1.0), 'loss': total(losses.astype(jnp.float32))}
  if labels.ndim == 2:
    return sums
  num_classes = logits.shape[-1]
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1, mode='clip')
  tied = (logits == own) & (jnp.arange(num_classes) < labels[:, None])
  ahead = jnp.sum(~(logits <= own) | tied, axis=-1)
  top1, top5 = total(ahead < 1), total(ahead < min(5, num_classes))
  return sums | {'top1': top1, 'top5': top5}


def merge(a: Sums, b: Sums) -> Sums:
  """Adds the sums of two disjoint sets of examples."""
  return {name: a[name] + b[name] for name in a}


def means(sums: Sums) -> dict[str, float]:
  """Returns the count, mean loss, top-1 and top-5 accuracy in [0, 1]."""
  count = float(sums['count'])
  values = {k: float(v) / count for k, v in sums.items() if k != 'count'}
  return {'num_examples': round(count), **values}


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
  areas = [
    sklearn_metrics.roc_auc_score(labels == c, probabilities[:, c])
    for c in present
  ]
  return float(np.mean(areas))


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
