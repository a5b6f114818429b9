"""Augmentation and normalization on the device: pure functions for jit.

Every image has its own key, so a batch's augmentation is a function of
(key, position in the batch) and doesn't depend on how it is sharded.

    >>> image = jnp.array([[[0, 128, 255]]], jnp.uint8)  # one pixel
    >>> to_signed(image)[..., ::2].tolist()
    [[[-1.0, 1.0]]]
    >>> to_uint8(to_signed(image)).tolist()
    [[[0, 128, 255]]]
    >>> normalize(image, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).max().item()
    1.0
"""

from collections.abc import Sequence

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from vit22b_jax.data import randaugment

PRESETS = ('none', 'paper', 'crop', 'standard', 'randaugment')

_PAPER_FLIP = 0.33  # "RandomHorizontalFlip(0.33), RandomVerticalFlip(0.33)"


def apply(
  key: PRNGKeyArray, images: UInt8[Array, 'B H W C'], preset: str
) -> UInt8[Array, 'B H W C']:
  """Augments a batch at random.

  - `none`: as it is.
  - `paper`: horizontal and vertical flips, each with probability 0.33.
  - `crop`: zero padding by an eighth of the side (4 at 32 px) and a random
    crop; for images that a mirror makes another thing, such as digits.
  - `standard`: `crop`, then a horizontal flip with probability 0.5.
  - `randaugment`: `standard`, then RandAugment (see `randaugment.py`).

  Args:
    key: one key for the batch.
    images: values in [0, 255].
    preset: one of PRESETS.
  """
  if preset == 'none':
    return images
  one = {
    'paper': _paper,
    'crop': _crop,
    'standard': _standard,
    'randaugment': _randaugment,
  }[preset]
  return jax.vmap(one)(jax.random.split(key, len(images)), images)


def normalize(
  images: UInt8[Array, 'B H W C'], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, 'B H W C']:
  """(images / 255 - mean) / std in float32; mean and std for each channel."""
  scaled = images.astype(jnp.float32) / 255
  return (scaled - jnp.asarray(mean)) / jnp.asarray(std)


def crop_and_flip(
  key: PRNGKeyArray,
  images: UInt8[Array, 'B h w C'],
  size: tuple[int, int],
  flip: bool,
) -> UInt8[Array, 'B H W C']:
  """A random crop of each image, mirrored with probability 0.5 if `flip`.

  Args:
    key: one key for the batch.
    images: at least as large as the crop.
    size: height H and width W of the crop.
    flip: whether to mirror (left to right).
  """
  spare = jnp.subtract(jnp.array(images.shape[1:3]), jnp.array(size))

  def one(key, image):
    where, mirror = jax.random.split(key)
    top, left = jax.random.randint(where, (2,), 0, spare + 1)
    part = jax.lax.dynamic_slice(image, (top, left, 0), (*size, image.shape[2]))
    return _flip(mirror, part, axis=1, probability=0.5) if flip else part

  return jax.vmap(one)(jax.random.split(key, len(images)), images)


def to_signed(images: UInt8[Array, '*B H W C']) -> Float[Array, '*B H W C']:
  """[0, 255] to float32 [-1, 1], as generators want them."""
  return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, '*B H W C']) -> UInt8[Array, '*B H W C']:
  """[-1, 1] to [0, 255], rounded; values outside are clipped."""
  scaled = (images.astype(jnp.float32) + 1) * 127.5
  return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)


def _paper(
  key: PRNGKeyArray, image: UInt8[Array, 'H W C']
) -> UInt8[Array, 'H W C']:
  horizontal, vertical = jax.random.split(key)
  image = _flip(horizontal, image, axis=1, probability=_PAPER_FLIP)
  return _flip(vertical, image, axis=0, probability=_PAPER_FLIP)


def _standard(
  key: PRNGKeyArray, image: UInt8[Array, 'H W C']
) -> UInt8[Array, 'H W C']:
  crop, flip = jax.random.split(key)
  return _flip(flip, _crop(crop, image), axis=1, probability=0.5)


def _randaugment(
  key: PRNGKeyArray, image: UInt8[Array, 'H W C']
) -> UInt8[Array, 'H W C']:
  standard, rest = jax.random.split(key)
  return randaugment.apply(rest, _standard(standard, image))


def _flip(
  key: PRNGKeyArray,
  image: UInt8[Array, 'H W C'],
  axis: int,
  probability: float,
) -> UInt8[Array, 'H W C']:
  flipped = jax.random.bernoulli(key, probability)
  return jnp.where(flipped, jnp.flip(image, axis), image)


def _crop(
  key: PRNGKeyArray, image: UInt8[Array, 'H W C']
) -> UInt8[Array, 'H W C']:
  """Zero padding and a random crop of the original size."""
  height, width, _ = image.shape
  pad = max(1, min(height, width) // 8)
  padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
