"""The losses of classifiers and of CycleGANs, all computed in float32.

    values = losses.cross_entropy(logits, labels, kind='softmax')     # [B]
    values, aux = losses.penalized(loss_fn, images, strength=0.1)

    gan = losses.adversarial(disc_b_scores, real=True)     # of a fake: fool
    loss = gan + lambda_cycle * losses.l1(rec_a, real_a)
    loss += lambda_cycle * lambda_identity * losses.l1(idt_a, real_a)
    disc = factor * losses.discriminator(scores_real, scores_fake)

    >>> scores = jnp.array([0.5, 1.0])
    >>> float(adversarial(scores, real=True))  # ((0.5 - 1)^2 + 0) / 2
    0.125

CycleGAN's are those of Zhu et al. 2017, arXiv:1703.10593, sections 3 and 4:
least squares (Mao et al. 2016, arXiv:1611.04076) in place of the original GAN's
cross entropy.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vit22b_jax import errors


def cross_entropy(
  logits: Float[Array, 'B C'],
  labels: Int[Array, ' B'] | Float[Array, 'B C'],
  *,
  kind: str = 'softmax',
  label_smoothing: float = 0.0,
) -> Float[Array, ' B']:
  """Returns the cross entropy of each example, in nats.

  The target of the labeled class is 1 - s + s/C and s/C elsewhere, with s the
  label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7). `softmax`
  compares distributions over classes; `sigmoid` sums one binary cross entropy
  for each class (Beyer et al. 2020, arXiv:2006.07159, section 4).

    >>> uniform = cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))
    >>> round(float(uniform[0]), 3)  # ln 10
    2.303
  """
  logits = logits.astype(jnp.float32)
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(labels, label_smoothing)
  if kind == 'softmax':
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


def probabilities(
  logits: Float[Array, 'B C'], kind: str
) -> Float[Array, 'B C']:
  """Returns each class's probability: of one of all, or of it or not."""
  return jax.nn.softmax(logits) if kind == 'softmax' else jax.nn.sigmoid(logits)


def class_weights(
  setting: str,
  labels: Int[np.ndarray, ' N'] | Float[np.ndarray, 'N C'],
  num_classes: int,
) -> Float[np.ndarray, ' C']:
  """Returns a weight for each class; their mean over all images is 1.

    >>> class_weights('balanced', np.array([0, 0, 0, 1]), 2).round(3).tolist()
    [0.667, 2.0]

  Args:
    setting: balanced (one over the class's images), or numbers as text.
    labels: of the training part: in [0, C), or 0 or 1 for each class.
    num_classes: C.

  Raises:
    UserError: there isn't a number above 0 for each class.
  """
  if labels.ndim == 1:
    counts = np.bincount(labels, minlength=num_classes)
  else:
    counts, labels = labels.sum(0), labels[labels.any(1)]
  weights = 1 / np.maximum(counts, 1)
  if setting != 'balanced':
    weights = np.array(setting.split(','), float)
    if len(weights) != num_classes or not weights.all():
      raise errors.UserError(
        f'loss.class_weights={setting!r} is not a number above 0 for each of '
        f'the {num_classes} classes.'
      )
  return weights / float(np.mean(example_weights(labels, weights)))


def example_weights(
  labels: Int[Array, ' B'] | Float[Array, 'B C'], weights: Float[Array, ' C']
) -> Float[Array, ' B']:
  """Returns the mean weight of each example's classes; 1 where it has none."""
  weights = jnp.asarray(weights, jnp.float32)
  if labels.ndim == 1:
    return weights[labels]
  total = labels.sum(1)
  return jnp.where(total > 0, labels @ weights / jnp.maximum(total, 1e-9), 1.0)


def penalized(
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
    loss_fn: maps images to the loss of each example and anything else, which is
      passed through.
    images: normalized as the model expects them.
    strength: lambda; a Python number, since 0 leaves the gradient out of the
      program.
  """
  if not strength:
    return loss_fn(images)

  def total(images):
    values, aux = loss_fn(images)
    return values.sum(), (values, aux)

  gradient, (values, aux) = jax.grad(total, has_aux=True)(images)
  return values + strength * jnp.sum(gradient**2, axis=(1, 2, 3)), aux


def adversarial(
  scores: Float[Array, '*B'], *, real: bool, kind: str = 'lsgan'
) -> Float[Array, '']:
  """Measures how far scores are from "real" (1) or "fake" (0), in the mean.

  lsgan: mean((s - t)^2); vanilla: the mean binary cross entropy of the logit s
  with t, `real`. A generator minimizes it towards `real=True` on its fakes.
  """
  scores = scores.astype(jnp.float32)
  target = jnp.full_like(scores, float(real))
  if kind == 'lsgan':
    return jnp.mean((scores - target) ** 2)
  return jnp.mean(optax.sigmoid_binary_cross_entropy(scores, target))


def discriminator(
  scores_real: Float[Array, '*B'],
  scores_fake: Float[Array, '*B'],
  *,
  kind: str = 'lsgan',
) -> Float[Array, '']:
  """Pulls real images to 1 and fakes to 0; CycleGAN halves the sum."""
  return adversarial(scores_real, real=True, kind=kind) + adversarial(
    scores_fake, real=False, kind=kind
  )


def l1(x: Float[Array, '*B'], y: Float[Array, '*B']) -> Float[Array, '']:
  """Computes mean |x - y|: cycle consistency, and the identity loss."""
  return jnp.mean(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32)))
