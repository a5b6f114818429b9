"""Computes one step of a CycleGAN: its networks' losses, and both updates.

    networks = Networks(generator, discriminator, **config.loss)
    done = cyclegan_update(
      state, networks, tx, real, key, order='generators', mesh=mesh
    )

Domains are `a` and `b`. `gen_ab` turns a into b, `gen_ba` b into a; `disc_a`
and `disc_b` tell a domain's images from fakes. Images are float32 in [-1, 1].
Zhu et al. 2017, arXiv:1703.10593, section 3.

Passes of one network over two batches are one pass over both: no network mixes
the images of a batch (instance norm is per image), so the result is the same.
The fakes of a step are those of the generators before it, whichever is updated
first: so they are made once, judged by the discriminators for both losses, and
pulled back to the generators' weights once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from vit22b_jax import errors
from vit22b_jax.models import generators, patchgan
from vit22b_jax.runtime import flops
from vit22b_jax.tasks import pools
from vit22b_jax.training import gradients, losses

GENERATORS = ('gen_ab', 'gen_ba')
DISCRIMINATORS = ('disc_a', 'disc_b')
NETWORKS = GENERATORS + DISCRIMINATORS

Images = dict[str, Float[Array, 'B H W 3']]
Scalars = dict[str, Float[Array, '']]


def build_networks(config: ConfigDict) -> 'Networks':
  """Builds the networks and losses that a config describes."""
  model = generators.build(dict(config.model), config.data.image_size)
  discriminator = patchgan.build(
    config.discriminator.name, dtype=model.dtype, precision=model.precision
  )
  return Networks(model, discriminator, **config.loss)


def validate_networks(config: ConfigDict) -> None:
  """Raises UserError where networks, image size and losses don't fit."""
  discriminator = build_networks(config).discriminator.preset
  size, smallest = config.data.image_size, discriminator.smallest
  if size < smallest:
    raise errors.UserError(
      f'data.image_size={size}: the discriminator '
      f'{config.discriminator.name!r} judges images of {smallest} pixels at '
      'least.'
    )
  if discriminator.sigmoid and config.loss.gan == 'vanilla':
    raise errors.UserError(
      f"loss.gan='vanilla' takes logits, and the discriminator "
      f'{config.discriminator.name!r} gives probabilities: use '
      "loss.gan='lsgan' or discriminator.name='patchgan70'."
    )
  if config.loss.lambda_paired and config.data.pairing != 'paired':
    raise errors.UserError(
      f'loss.lambda_paired={config.loss.lambda_paired} compares translations '
      f'with the other image of their pair, and data.pairing='
      f"{config.data.pairing!r} has no pairs: set data.pairing='paired', or "
      'lambda_paired to 0.'
    )
  if config.eval.early_stop and not config.eval.fid:
    raise errors.UserError(
      f'eval.early_stop={config.eval.early_stop} goes by the FID of '
      'validations, and eval.fid=False leaves it out: choose one.'
    )


@dataclasses.dataclass(frozen=True)
class Networks:
  """Holds the modules, of either direction or domain, and the losses' weights.

  Attributes:
    gan: a kind of `losses.adversarial`.
    lambda_cycle: weight of the cycle consistency.
    lambda_identity: weight of the identity loss, times `lambda_cycle`; 0 leaves
      its passes out of the program.
    lambda_paired: weight of the L1 between a translation and the other image of
      its pair (100 in Isola et al. 2017, arXiv:1611.07004, section 3.1).
    discriminator_factor: weight of the discriminators' loss.
  """

  generator: nn.Module
  discriminator: nn.Module
  gan: str
  lambda_cycle: float
  lambda_identity: float
  lambda_paired: float
  discriminator_factor: float

  @property
  def terms(self) -> dict[str, float]:
    """Returns the weight of each term of the losses, which are means."""
    cycle, factor = self.lambda_cycle, self.discriminator_factor
    weights = dict(gan_a2b=1.0, gan_b2a=1.0, cycle_a=cycle, cycle_b=cycle)
    if self.lambda_identity:
      identity = self.lambda_identity * cycle
      weights |= dict(idt_a=identity, idt_b=identity)
    if paired := self.lambda_paired:
      weights |= dict(paired_a=paired, paired_b=paired)
    return weights | dict(disc_a=factor, disc_b=factor)

  def training_flops(self, image_size: int) -> float:
    """Returns the model FLOPs of a step for one image of each domain.

    A pass backward is two forward, or one where the weights are constants, as
    the discriminators' are to the generators.
    """
    size = image_size, image_size
    generator = flops.image_flops(self.generator, size)
    discriminator = flops.image_flops(self.discriminator, size)
    passes = 6 if self.lambda_identity else 4
    judged = 2 * 2 + 4 * 3  # fakes for the generators; real ones and fakes
    return passes * 3 * generator + judged * discriminator

  def generate(
    self, generators: dict[str, Any], real: Images, key: PRNGKeyArray
  ) -> Images:
    """Makes all images that a step needs; `generators` are their parameters.

    Returns:
      `fake_b` (of a) and `fake_a`; `rec_a` and `rec_b`, the way back; with an
      identity loss `idt_a` (what gen_ba makes of a) and `idt_b`.
    """
    keys = iter(jax.random.split(key, 4))

    def apply(name, images):
      rngs = {'dropout': next(keys)}
      params = {'params': generators[name]}
      return self.generator.apply(params, images, train=True, rngs=rngs)

    made = {}
    if self.lambda_identity:
      both = interleave(real['a'], real['b'])
      made['fake_b'], made['idt_b'] = deinterleave(apply('gen_ab', both))
      made['idt_a'], made['fake_a'] = deinterleave(apply('gen_ba', both))
    else:
      made['fake_b'] = apply('gen_ab', real['a'])
      made['fake_a'] = apply('gen_ba', real['b'])
    made['rec_a'] = apply('gen_ba', made['fake_b'])
    made['rec_b'] = apply('gen_ab', made['fake_a'])
    return made

  def generator_loss(
    self, made: Images, discriminators: dict[str, Any], real: Images
  ) -> tuple[Float[Array, ''], Scalars]:
    """Computes the loss that both generators minimize, of what they `made`.

    Returns:
      The loss, and the terms by name with `max_score`, the largest absolute
      score.
    """
    terms, scores = {}, []
    for domain, direction in (('b', 'a2b'), ('a', 'b2a')):
      params = {'params': discriminators[f'disc_{domain}']}
      found = self.discriminator.apply(params, made[f'fake_{domain}'])
      terms[f'gan_{direction}'] = losses.adversarial(
        found, real=True, kind=self.gan
      )
      scores.append(found)
    for domain, images in real.items():
      terms[f'cycle_{domain}'] = losses.l1(made[f'rec_{domain}'], images)
      if self.lambda_identity:
        terms[f'idt_{domain}'] = losses.l1(made[f'idt_{domain}'], images)
      if self.lambda_paired:
        terms[f'paired_{domain}'] = losses.l1(made[f'fake_{domain}'], images)
    loss = sum(self.terms[name] * term for name, term in terms.items())
    return loss, terms | {'max_score': optax.tree.norm(scores, ord='inf')}

  def discriminator_loss(
    self, discriminators: dict[str, Any], real: Images, shown: Images
  ) -> tuple[Float[Array, ''], Scalars]:
    """Computes the loss that both discriminators minimize.

    `shown` are fakes, new or from a pool. Returns as `generator_loss`.
    """
    terms, scores = {}, []
    for domain, images in real.items():
      params = {'params': discriminators[f'disc_{domain}']}
      both = interleave(images, shown[domain])
      found = self.discriminator.apply(params, both)
      terms[f'disc_{domain}'] = losses.discriminator(
        *deinterleave(found), kind=self.gan
      )
      scores.append(found)
    loss = self.discriminator_factor * sum(terms.values())
    return loss, terms | {'max_score': optax.tree.norm(scores, ord='inf')}


class Updates(NamedTuple):
  """Holds what `cyclegan_update` computes.

  Attributes:
    made: all images of the generators.
    grads: by network, before clipping.
    updates: what the optimizers add to the parameters, by network.
    opt_state: of `generators` and `discriminators`, afterwards.
    pools: of the domains, afterwards.
    seen: the terms of the losses by name, `loss` (their weighted sum) and
      `max_score`, the largest absolute score.
  """

  made: Images
  grads: dict[str, Any]
  updates: dict[str, Any]
  opt_state: dict[str, Any]
  pools: dict[str, pools.Pool | None]
  seen: Scalars


def cyclegan_update(
  state: Any,
  networks: Networks,
  tx: optax.GradientTransformation,
  real: Images,
  key: PRNGKeyArray,
  *,
  order: str,
  mesh: jax.sharding.Mesh,
) -> Updates:
  """Computes gradients and updates of generators and discriminators.

  The pools' images and the fakes are constants to the discriminators; the
  discriminators are constants to the generators: as they were before the step
  or, updated first, after it.

  Args:
    state: a `cyclegan.State` before the step.
    networks: the modules and losses.
    tx: the rule of both optimizers.
    real: batches `a` and `b` in [-1, 1].
    key: of dropout and the pools.
    order: what is updated first, 'generators' or 'discriminators'.
    mesh: where the batch lives.
  """
  opt_state, shown, new_pools = {}, {}, {}
  gens, discs = (pick(state.params, n) for n in (GENERATORS, DISCRIMINATORS))
  scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
  dropout_key, pool_key = jax.random.split(key)
  made, pull_back = jax.vjp(
    lambda params: networks.generate(params, real, dropout_key), gens
  )
  for k, domain in zip(jax.random.split(pool_key), 'ab', strict=True):
    shown[domain], new_pools[domain] = pools.exchange(
      k, state.pools[domain], made[f'fake_{domain}'], mesh
    )
  disc_grads, disc_seen = _scaled_grad(
    networks.discriminator_loss, scale, discs, real, shown
  )
  disc_grads = jax.tree.map(lambda g: g / scale, disc_grads)
  disc_updates, opt_state['discriminators'] = tx.update(
    disc_grads, state.opt_state['discriminators'], discs
  )
  if order == 'discriminators':
    finite = gradients.all_finite(disc_grads)  # or else the step isn't taken
    discs = jax.tree.map(
      lambda p, u: jnp.where(finite, p + u, p), discs, disc_updates
    )
  cotangents, gen_seen = _scaled_grad(
    networks.generator_loss, scale, made, discs, real
  )
  gen_grads = jax.tree.map(lambda g: g / scale, pull_back(cotangents)[0])
  gen_updates, opt_state['generators'] = tx.update(
    gen_grads, state.opt_state['generators'], gens
  )
  grads, updates = gen_grads | disc_grads, gen_updates | disc_updates
  seen = disc_seen | gen_seen
  seen['loss'] = gen_seen['loss'] + disc_seen['loss']
  seen['max_score'] = jnp.maximum(gen_seen['max_score'], disc_seen['max_score'])
  return Updates(made, grads, updates, opt_state, new_pools, seen)


def _scaled_grad(
  loss_fn: Callable[..., tuple[Float[Array, ''], Scalars]],
  scale: Float[Array, ''] | float,
  *args: Any,
) -> tuple[Any, Scalars]:
  """Returns the gradient of scale x loss for the first argument, and scalars.

  They are those of `loss_fn`, with the unscaled `loss`.
  """

  def scaled(*args):
    loss, seen = loss_fn(*args)
    return scale * loss, seen | {'loss': loss}

  return jax.grad(scaled, has_aux=True)(*args)


def clipped_norm(grads: dict[str, Any], clip_norm: float) -> Float[Array, '']:
  """Computes the norm of all gradients; each optimizer clips its own."""
  groups = (pick(grads, names) for names in (GENERATORS, DISCRIMINATORS))
  norms = jnp.stack([optax.tree.norm(group) for group in groups])
  return jnp.linalg.norm(jnp.minimum(norms, clip_norm or jnp.inf))


def pick(tree: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
  """Returns the entries of these names."""
  return {name: tree[name] for name in names}


def interleave(x: Array, y: Array) -> Array:
  """Joins two batches [B, ...] into one [2 B, ...], image by image.

  Images that belong together stay on the device that they are on.
  """
  return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])


def deinterleave(z: Array) -> tuple[Array, Array]:
  """Inverts `interleave`."""
  pairs = z.reshape(-1, 2, *z.shape[1:])
  return pairs[:, 0], pairs[:, 1]
