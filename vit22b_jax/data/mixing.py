"""Mixup and CutMix: each image of a batch with another, and their labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vit22b_jax.data import crops


def mix(
  key: PRNGKeyArray,
  images: Float[Array, 'B H W C'],
  targets: Float[Array, 'B K'],
  *,
  mixup: float,
  cutmix: float,
  switch: float,
) -> tuple[Float[Array, 'B H W C'], Float[Array, 'B K']]:
  """Mixes image i with image B - 1 - i, in one proportion for the batch.

  Mixup (Zhang et al. 2017, arXiv:1710.09412) averages; CutMix (Yun et al. 2019,
  arXiv:1905.04899) puts a box of one into the other. As timm's `Mixup` in its
  batch mode: the share is drawn from Beta(alpha, alpha), and CutMix's is set to
  the box's area, which the border may cut. `mixup` and `cutmix` are alphas, 0
  for none, and `switch` the probability of CutMix where there are both.
  """
  choose, blend, cut, where = jax.random.split(key, 4)
  others = images[::-1]
  if mixup:
    share = jax.random.beta(blend, mixup, mixup)
    mixed = share * images + (1 - share) * others
  if cutmix:
    box = cut_box(
      where, images.shape[1:3], jax.random.beta(cut, cutmix, cutmix)
    )
    inside = crops.box_mask(images.shape[1:3], *box)
    pasted = jnp.where(inside[..., None], others, images)
    kept = 1 - inside.mean()
    if mixup:
      is_cut = jax.random.bernoulli(choose, switch)
      mixed = jnp.where(is_cut, pasted, mixed)
      share = jnp.where(is_cut, kept, share)
    else:
      mixed, share = pasted, kept
  return mixed, share * targets + (1 - share) * targets[::-1]


def cut_box(
  key: PRNGKeyArray, size: tuple[int, int], share: Float[Array, '']
) -> tuple[Int[Array, ''], ...]:
  """Draws top, left, height and width of a box of 1 - share of the area.

  Its center is anywhere, so that the border may cut it.
  """
  height, width = size
  ratio = jnp.sqrt(1 - share)
  half_height = (height * ratio).astype(jnp.int32) // 2
  half_width = (width * ratio).astype(jnp.int32) // 2
  row, column = jax.random.randint(key, (2,), 0, jnp.array(size))
  top, left = (
    jnp.maximum(row - half_height, 0),
    jnp.maximum(column - half_width, 0),
  )
  bottom = jnp.minimum(row + half_height, height)
  right = jnp.minimum(column + half_width, width)
  return top, left, bottom - top, right - left
