"""Augmentation and normalization on the device: pure functions for jit.

    recipe = augment.recipe(config.data)
    images, targets = augment.train_images(key, images, targets, recipe)

Every image has its own key, so a batch's augmentation is a function of
(key, position in the batch) and doesn't depend on how it is sharded.

    >>> image = jnp.array([[[0, 128, 255]]], jnp.uint8)  # one pixel
    >>> to_signed(image)[..., ::2].tolist()
    [[[-1.0, 1.0]]]
    >>> normalize(image, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).max().item()
    1.0
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vit22b_jax.data import crops, randaugment

_CROP = {'crop_padding': -1}  # An eighth of the side: 4 at 32 px.
_STANDARD = {**_CROP, 'flip_horizontal': 0.5}

# What each word of `data.augment` stands for; the keys of `data` override it.
# `crop` is for images that a mirror makes another thing, such as digits.
PRESETS: Mapping[str, Mapping[str, Any]] = {
  'none': {},
  # "RandomHorizontalFlip(0.33), RandomVerticalFlip(0.33)"
  'paper': {'flip_horizontal': 0.33, 'flip_vertical': 0.33},
  'crop': _CROP,
  'standard': _STANDARD,
  'randaugment': {**_STANDARD, 'randaugment_layers': 2},
  'strong': {
    **_STANDARD,
    'randaugment_layers': 2,
    'erase': 0.25,
    'mixup': 0.8,
    'cutmix': 1.0,
  },
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How training images are changed at random, in this order.

  Attributes are the keys of the config's `data`. Without `crop_scale` there is
  a padded crop, without `crop_padding` either the center is cut.
  """

  image_size: int
  crop_scale: tuple[float, float] | None = None
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  crop_padding: int | None = None
  flip_horizontal: float = 0.0
  flip_vertical: float = 0.0
  randaugment_layers: int = 0
  randaugment_magnitude: float = 9.0
  erase: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  mix_switch: float = 0.5


def recipe(data: Mapping[str, Any]) -> Recipe:
  """Returns what `data.augment` says, where no other key of `data` does."""
  names = [field.name for field in dataclasses.fields(Recipe)]
  given = {k: data[k] for k in names if data.get(k) is not None}
  return Recipe(**{**PRESETS[data['augment']], **given})


def apply(
  key: PRNGKeyArray, images: UInt8[Array, 'B h w C'], recipe: Recipe
) -> UInt8[Array, 'B H W C']:
  """Crops, mirrors and distorts images at random, at least `image_size`."""
  layers, magnitude = recipe.randaugment_layers, recipe.randaugment_magnitude

  def one(key, image):
    # Keys are split only where two stages draw: runs resume in their draws.
    if not layers:
      return _flipped(*_cropped(key, image, recipe), recipe)
    key, distort = jax.random.split(key)
    image = _flipped(*_cropped(key, image, recipe), recipe)
    return randaugment.apply(distort, image, layers, magnitude)

  return jax.vmap(one)(jax.random.split(key, len(images)), images)


def train_images(
  key: PRNGKeyArray,
  images: UInt8[Array, 'B h w C'],
  labels: Int[Array, ' B'] | Float[Array, 'B K'],
  recipe: Recipe,
  *,
  mean: Sequence[float],
  std: Sequence[float],
  num_classes: int,
) -> tuple[Float[Array, 'B H W C'], Int[Array, ' B'] | Float[Array, 'B K']]:
  """Augments, normalizes, erases and mixes a batch, by one key.

  Returns:
    Normalized images; and their labels, or probabilities of the K classes where
    images are mixed.
  """
  x = normalize(apply(key, images, recipe), mean, std)
  if recipe.erase:
    keys = jax.random.split(jax.random.fold_in(key, 1), len(x))
    x = jax.vmap(lambda k, y: crops.erase(k, y, recipe.erase))(keys, x)
  if not recipe.mixup and not recipe.cutmix:
    return x, labels
  return mix(
    jax.random.fold_in(key, 2),
    x,
    labels if labels.ndim > 1 else jax.nn.one_hot(labels, num_classes),
    mixup=recipe.mixup,
    cutmix=recipe.cutmix,
    switch=recipe.mix_switch,
  )


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
    box = _cut_box(
      where, images.shape[1:3], jax.random.beta(cut, cutmix, cutmix)
    )
    inside = crops.box_mask(images.shape[1:3], box)
    pasted = jnp.where(inside[..., None], others, images)
    kept = 1 - inside.mean()
    if mixup:
      is_cut = jax.random.bernoulli(choose, switch)
      mixed = jnp.where(is_cut, pasted, mixed)
      share = jnp.where(is_cut, kept, share)
    else:
      mixed, share = pasted, kept
  return mixed, share * targets + (1 - share) * targets[::-1]


def eval_images(
  images: UInt8[Array, 'B h h C'], image_size: int, share: float | None = None
) -> UInt8[Array, 'B S S C']:
  """Cuts the center of images, as an evaluation sees them.

  That is `share` of the side, resized (bilinear, antialiased); or, for None,
  `image_size` pixels as they are.
  """
  size = (image_size, image_size)
  if share is None:
    return jax.vmap(lambda x: crops.center(x, size))(images)
  side = max(1, round(share * images.shape[1]))
  start = (images.shape[1] - side) // 2
  box = jnp.array([start, start, side, side])
  return jax.vmap(lambda x: crops.resize_box(x, box, size))(images)


def crop_and_flip(
  key: PRNGKeyArray,
  images: UInt8[Array, 'B h w C'],
  size: tuple[int, int],
  flip: bool,
) -> UInt8[Array, 'B H W C']:
  """Cuts a random part of each image, mirrored with probability 0.5 if `flip`.

  The part is a function of the key and of the images' size.
  """

  def one(key, image):
    where, mirror = jax.random.split(key)
    part = crops.random(where, image, size, 0)
    return crops.flip(mirror, part, axis=1, probability=0.5) if flip else part

  return jax.vmap(one)(jax.random.split(key, len(images)), images)


def normalize(
  images: UInt8[Array, 'B H W C'], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, 'B H W C']:
  """Computes (images / 255 - mean) / std in float32, for each channel."""
  scaled = images.astype(jnp.float32) / 255
  return (scaled - jnp.asarray(mean)) / jnp.asarray(std)


def to_signed(images: UInt8[Array, '*B H W C']) -> Float[Array, '*B H W C']:
  """Maps [0, 255] to float32 [-1, 1], as generators want them."""
  return images.astype(jnp.float32) / 127.5 - 1


def _cropped(
  key: PRNGKeyArray, image: UInt8[Array, 'h w C'], recipe: Recipe
) -> tuple[PRNGKeyArray, UInt8[Array, 'H W C']]:
  """Returns the key of the flips, and the image in its final size."""
  size = (recipe.image_size,) * 2
  padding = recipe.crop_padding
  if recipe.crop_scale is None and padding is None:
    return key, crops.center(image, size)
  crop = key
  if recipe.flip_horizontal or recipe.flip_vertical:
    crop, key = jax.random.split(key)
  if recipe.crop_scale is not None:
    return key, crops.random_resized(
      crop, image, size, recipe.crop_scale, recipe.crop_ratio
    )
  padding = max(1, recipe.image_size // 8) if padding == -1 else padding
  return key, crops.random(crop, image, size, padding)


def _flipped(
  key: PRNGKeyArray, image: UInt8[Array, 'H W C'], recipe: Recipe
) -> UInt8[Array, 'H W C']:
  horizontal = vertical = key
  if recipe.flip_horizontal and recipe.flip_vertical:
    horizontal, vertical = jax.random.split(key)
  if recipe.flip_horizontal:
    image = crops.flip(horizontal, image, 1, recipe.flip_horizontal)
  if recipe.flip_vertical:
    image = crops.flip(vertical, image, 0, recipe.flip_vertical)
  return image


def _cut_box(
  key: PRNGKeyArray, size: tuple[int, int], share: Float[Array, '']
) -> Int[Array, '4']:
  """Draws top, left, height and width of a box of 1 - share of the area.

  Its center is anywhere, so that the border may cut it.
  """
  height, width = size
  ratio = jnp.sqrt(1 - share)
  half_height = (height * ratio).astype(jnp.int32) // 2
  half_width = (width * ratio).astype(jnp.int32) // 2
  row, column = jax.random.randint(key, (2,), 0, jnp.array(size))
  top = jnp.maximum(row - half_height, 0)
  left = jnp.maximum(column - half_width, 0)
  bottom = jnp.minimum(row + half_height, height)
  right = jnp.minimum(column + half_width, width)
  return jnp.array([top, left, bottom - top, right - left])
