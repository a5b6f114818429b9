"""Sums a classifier's attention up as one map an image, for the report.

found = attention.maps(inside['attn_map'], class_token=True)
found['rollout']  # [B, h, w], one number a patch
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float


def maps(
  weights: Float[Array, 'depth B N L L'], *, class_token: bool
) -> dict[str, Float[Array, 'B h w']]:
  """Returns how much each patch is looked at.

  Args:
    weights: attention of all blocks, query tokens before key tokens.
    class_token: whether the first token is one, whose attention counts. Without
      it the mean over all tokens does.

  Returns:
    `last`: of the last block, the mean over heads. `rollout`: through all
    blocks, the product of (A + I) / 2, A being a block's mean over heads (Abnar
    and Zuidema, 2020).
  """
  blocks = weights.astype(jnp.float32).mean(2)
  mixed = (blocks + jnp.eye(blocks.shape[-1])) / 2
  rollout = functools.reduce(lambda before, block: block @ before, mixed)

  def grid(found):
    patches = found[:, 0, 1:] if class_token else found.mean(1)
    side = round(patches.shape[1] ** 0.5)
    return patches.reshape(-1, side, side)

  return {'last': grid(blocks[-1]), 'rollout': grid(rollout)}
