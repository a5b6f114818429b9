"""Classification losses, one number an example, and the input-gradient penalty.

def loss_fn(images):
  logits = model.apply(variables, images)
  return losses.cross_entropy(logits, labels), logits

values, logits = losses.penalised(loss_fn, images, strength=0.1)
loss = values.mean()
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vit22b_jax import errors

KINDS = ('softmax', 'sigmoid')


def cross_entropy(
  logits: Float[Array, 'B C'],
  labels: Int[Array, ' B'],
  *,
  kind: str = 'softmax',
  label_smoothing: float = 0.0,
) -> Float[Array, ' B']:
  """Cross entropy of each example, in nats.

  The target of the labelled class is 1 - s + s/C and s/C elsewhere, with s the
  label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7). `softmax`
  compares distributions over classes; `sigmoid` sums one binary cross entropy
  for each class (Beyer et al. 2020, arXiv:2006.07159, section 4).

    >>> uniform = cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))
    >>> round(float(uniform[0]), 3)  # ln 10
    2.303

  Args:
    logits: of any float type; the loss is computed in float32.
    labels: in [0, C).
    kind: softmax or sigmoid.
    label_smoothing: s, in [0, 1).

  Raises:
    errors.UserError: `kind` is unknown.
  """
  logits = logits.astype(jnp.float32)
  targets = optax.smooth_labels(
    jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing
  )
  if kind == 'softmax':
    return optax.softmax_cross_entropy(logits, targets)
  if kind == 'sigmoid':
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
  raise errors.UserError(
    f'loss.kind={kind!r}: expected one of {", ".join(KINDS)}'
  )


def penalised(
  loss_fn: Callable[[Float[Array, 'B H W 3']], tuple[Float[Array, ' B'], Any]],
  images: Float[Array, 'B H W 3'],
  strength: float,
) -> tuple[Float[Array, ' B'], Any]:
  """Adds strength * ||d loss_i / d image_i||^2 to the loss of each example i.

  The mean over the batch is then the mean loss plus `strength` times the mean
  squared norm of the loss's gradient with respect to the image (double
  backpropagation, Drucker & LeCun 1992). The paper's Figure 1b names a
  "gradient penalty" without a formula and its code has none: this one is ours.
  A head with batch norm couples the examples; there, the gradient is that of
  the summed loss.

  Args:
    loss_fn: from normalised images to the loss of each example and anything
      else, which is handed through.
    images: normalised as the model expects them.
    strength: lambda, at least 0; a Python number, since 0 leaves the gradient
      out of the program.
  """
  if not strength:
    return loss_fn(images)

  def total(images):
    values, aux = loss_fn(images)
    return values.sum(), (values, aux)

  gradient, (values, aux) = jax.grad(total, has_aux=True)(images)
  return values + strength * jnp.sum(gradient**2, axis=(1, 2, 3)), aux
