"""The losses of a CycleGAN, each the mean over whatever it is given.

    gan = losses_gan.adversarial(disc_b_scores, real=True)     # of a fake: fool
    loss = gan + lambda_cycle * losses_gan.l1(rec_a, real_a)
    loss += lambda_cycle * lambda_identity * losses_gan.l1(idt_a, real_a)
    disc = factor * losses_gan.discriminator(scores_real, scores_fake)

    >>> scores = jnp.array([0.5, 1.0])
    >>> float(adversarial(scores, real=True))  # ((0.5 - 1)^2 + 0) / 2
    0.125

Zhu et al. 2017, arXiv:1703.10593, sections 3 and 4: least squares (Mao et al.
2016, arXiv:1611.04076) in place of the original GAN's cross entropy.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vit22b_jax import errors

GANS = ('lsgan', 'vanilla')


def adversarial(
  scores: Float[Array, '*B'], *, real: bool, kind: str = 'lsgan'
) -> Float[Array, '']:
  """How far a discriminator's scores are from "real" (1) or "fake" (0).

  lsgan: mean((s - t)^2); vanilla: the mean binary cross entropy of the logit s
  with t. A generator minimises it towards `real=True` on its fakes.

  Args:
    scores: one a patch, of any float type; the loss is computed in float32.
    real: the target t.
    kind: lsgan or vanilla.

  Raises:
    errors.UserError: `kind` is unknown.
  """
  scores = scores.astype(jnp.float32)
  target = jnp.full_like(scores, float(real))
  if kind == 'lsgan':
    return jnp.mean((scores - target) ** 2)
  if kind == 'vanilla':
    return jnp.mean(optax.sigmoid_binary_cross_entropy(scores, target))
  raise errors.UserError(
    f'loss.gan={kind!r}: expected one of {", ".join(GANS)}'
  )


def discriminator(
  scores_real: Float[Array, '*B'],
  scores_fake: Float[Array, '*B'],
  *,
  kind: str = 'lsgan',
) -> Float[Array, '']:
  """Real images towards 1 plus fakes towards 0; CycleGAN halves the sum."""
  return adversarial(scores_real, real=True, kind=kind) + adversarial(
    scores_fake, real=False, kind=kind
  )


def l1(x: Float[Array, '*B'], y: Float[Array, '*B']) -> Float[Array, '']:
  """mean |x - y| in float32: cycle consistency, and the identity loss."""
  return jnp.mean(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32)))
