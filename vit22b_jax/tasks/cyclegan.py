"""What the four networks of a CycleGAN compute in one step.

    nets = Networks(generator, discriminator, config.loss)
    made = nets.generate(generators, real, key)       # every generator pass
    loss, seen = nets.generator_loss(made, discriminators, real)
    loss, seen = nets.discriminator_loss(discriminators, real, shown)

Domains are `a` and `b`. `gen_ab` turns a into b, `gen_ba` b into a; `disc_a`
and `disc_b` tell a domain's images from fakes. Images are float32 in [-1, 1].
Zhu et al. 2017, arXiv:1703.10593, section 3.

Passes of one network over two batches are one pass over both: no network mixes
the images of a batch (instance norm is per image), so the result is the same.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vit22b_jax.training import losses_gan

GENERATORS = ('gen_ab', 'gen_ba')
DISCRIMINATORS = ('disc_a', 'disc_b')
NETWORKS = GENERATORS + DISCRIMINATORS

Images = dict[str, Float[Array, 'B H W 3']]
Scalars = dict[str, Float[Array, '']]


@dataclasses.dataclass(frozen=True)
class Networks:
  """The modules and the weights of the losses' terms.

  Attributes:
    generator: of either direction.
    discriminator: of either domain.
    gan: a kind of `losses_gan.adversarial`.
    lambda_cycle: weight of the cycle consistency.
    lambda_identity: weight of the identity loss, times `lambda_cycle`; 0 leaves
      its passes out of the program.
    discriminator_factor: weight of the discriminators' loss.
  """

  generator: nn.Module
  discriminator: nn.Module
  gan: str
  lambda_cycle: float
  lambda_identity: float
  discriminator_factor: float

  @property
  def modules(self) -> dict[str, nn.Module]:
    """The module of each network."""
    return {
      **dict.fromkeys(GENERATORS, self.generator),
      **dict.fromkeys(DISCRIMINATORS, self.discriminator),
    }

  @property
  def terms(self) -> tuple[str, ...]:
    """Names of the losses' terms, each a mean before its weight."""
    identity = ('idt_a', 'idt_b') if self.lambda_identity else ()
    generators = ('gan_a2b', 'gan_b2a', 'cycle_a', 'cycle_b', *identity)
    return (*generators, *DISCRIMINATORS)

  def generate(
    self, generators: dict[str, Any], real: Images, key: PRNGKeyArray
  ) -> Images:
    """All that the generators make of a batch in training.

    Args:
      generators: parameters by name.
      real: batches `a` and `b`.
      key: of dropout.

    Returns:
      `fake_b` (of a) and `fake_a`; `rec_a` and `rec_b`, the way back; with an
      identity loss `idt_a` (what gen_ba makes of a) and `idt_b`.
    """
    keys = iter(jax.random.split(key, 4))

    def apply(name, images):
      return self.generator.apply(
        {'params': generators[name]},
        images,
        train=True,
        rngs={'dropout': next(keys)},
      )

    made = {}
    if self.lambda_identity:
      both = together(real['a'], real['b'])
      made['fake_b'], made['idt_b'] = apart(apply('gen_ab', both))
      made['idt_a'], made['fake_a'] = apart(apply('gen_ba', both))
    else:
      made['fake_b'] = apply('gen_ab', real['a'])
      made['fake_a'] = apply('gen_ba', real['b'])
    made['rec_a'] = apply('gen_ba', made['fake_b'])
    made['rec_b'] = apply('gen_ab', made['fake_a'])
    return made

  def generator_loss(
    self, made: Images, discriminators: dict[str, Any], real: Images
  ) -> tuple[Float[Array, ''], Scalars]:
    """What both generators minimise.

    Args:
      made: as `generate` gives them.
      discriminators: parameters by name; constants here.
      real: batches `a` and `b`.

    Returns:
      The loss, and the terms by name with `max_score`, the largest absolute
      score.
    """
    terms, scores = {}, []
    for domain, direction in (('b', 'a2b'), ('a', 'b2a')):
      name = f'disc_{domain}'
      found = self._scores(discriminators[name], made[f'fake_{domain}'])
      terms[f'gan_{direction}'] = self._adversarial(found, True)
      scores.append(found)
    for domain, images in real.items():
      terms[f'cycle_{domain}'] = losses_gan.l1(made[f'rec_{domain}'], images)
      if self.lambda_identity:
        terms[f'idt_{domain}'] = losses_gan.l1(made[f'idt_{domain}'], images)
    identity = self.lambda_identity * self.lambda_cycle
    weights = {'gan': 1.0, 'cycle': self.lambda_cycle, 'idt': identity}
    loss = sum(weights[k.split('_')[0]] * term for k, term in terms.items())
    return loss, terms | {'max_score': _largest(scores)}

  def discriminator_loss(
    self, discriminators: dict[str, Any], real: Images, shown: Images
  ) -> tuple[Float[Array, ''], Scalars]:
    """What both discriminators minimise.

    Args:
      discriminators: parameters by name.
      real: batches `a` and `b`.
      shown: fakes of `a` and `b`, new or from a pool; constants here.

    Returns:
      The loss, and the terms by name with `max_score`.
    """
    terms, scores = {}, []
    for domain, images in real.items():
      both = together(images, shown[domain])
      found = self._scores(discriminators[f'disc_{domain}'], both)
      of_real, of_fake = apart(found)
      terms[f'disc_{domain}'] = losses_gan.discriminator(
        of_real, of_fake, kind=self.gan
      )
      scores.append(found)
    loss = self.discriminator_factor * sum(terms.values())
    return loss, terms | {'max_score': _largest(scores)}

  def _scores(self, params: Any, images: Array) -> Array:
    return self.discriminator.apply({'params': params}, images)

  def _adversarial(self, scores: Array, real: bool) -> Array:
    return losses_gan.adversarial(scores, real=real, kind=self.gan)


def together(x: Array, y: Array) -> Array:
  """Two batches [B, ...] as one [2 B, ...], image by image.

  Images that belong together stay on the device that they are on.
  """
  return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])


def apart(z: Array) -> tuple[Array, Array]:
  """The inverse of `together`."""
  pairs = z.reshape(-1, 2, *z.shape[1:])
  return pairs[:, 0], pairs[:, 1]


def _largest(scores: list[Array]) -> Float[Array, '']:
  return jnp.max(jnp.stack([jnp.max(jnp.abs(s)) for s in scores]))
