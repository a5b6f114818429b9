"""A plain ViT as one would write it from Flax's documentation: a peer."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit22b_jax.models import vit

DEPTH, PATCH, CLASSES = 12, 4, 10


class Block(nn.Module):
  """x + Attn(n x), then x + MLP(n x)."""

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x += nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
    y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
    return x + nn.Dense(x.shape[-1])(y)


class ViT(nn.Module):
  """Logits of images [B, H, W, 3], from a class token."""

  width: int

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = nn.Conv(self.width, (PATCH, PATCH), PATCH)(images)
    x = x.reshape(len(x), -1, self.width)
    init = nn.initializers.normal(0.02)
    token = self.param('token', init, (1, 1, self.width))
    x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
    x += self.param('position', init, (1, *x.shape[1:]))
    for _ in range(DEPTH):
      x = Block(self.width // 64)(x)
    return nn.Dense(CLASSES)(nn.LayerNorm()(x)[:, 0])


def training_step(
  variant: str, batch_size: int
) -> tuple[Callable[[], float], int]:
  """Returns a step on random images of 32 px, and the number of parameters.

  It clips and updates by optax's AdamW; there are no diagnostics.
  """
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.standard_normal((batch_size, 32, 32, 3), 'float32'))
  labels = jnp.asarray(rng.integers(0, CLASSES, batch_size))
  model = ViT(vit.VARIANTS[variant]['width'])
  optimizer = optax.chain(
    optax.clip_by_global_norm(10.0), optax.adamw(5e-4, weight_decay=1e-4)
  )
  params = jax.jit(model.init)(jax.random.key(0), images)

  def loss_of(params):
    losses = optax.softmax_cross_entropy_with_integer_labels(
      model.apply(params, images), labels
    )
    return losses.mean()

  @jax.jit
  def update(params, state):
    loss, gradients = jax.value_and_grad(loss_of)(params)
    changes, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, changes), state, loss

  state = optimizer.init(params)

  def step() -> float:
    nonlocal params, state
    params, state, loss = update(params, state)
    return float(loss)

  return step, sum(p.size for p in jax.tree.leaves(params))
