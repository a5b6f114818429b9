"""Exchanges one part of the spatial ViTUnet at a time.

with variants.chosen('no_residual'):
  model = generators.build_vitunet(..., resample='space')
"""

import contextlib
from unittest import mock

import jax.numpy as jnp

from vit22b_jax.models import axes, convolutions, generators, resnet_generator
from vit22b_jax.models.vitunet_spatial import Maps, SpatialViTUnet


class NoResidual(SpatialViTUnet, kw_only=True):
  """Draws the result itself rather than a change of its input."""

  def result(self, images, change):
    """Returns images in [-1, 1], gray at first."""
    del images
    return jnp.tanh(change)


class NoFineMaps(SpatialViTUnet, kw_only=True):
  """Sends all through tokens: maps finer than a patch aren't handed on."""

  def _head(self, x, maps):
    return super()._head(x, [jnp.zeros_like(skip) for skip in maps])


class CutPatches(SpatialViTUnet, kw_only=True):
  """Embeds patches that don't overlap, as ViT does."""

  def embed(self, images, maps):
    """Returns one token for each patch."""
    del maps
    b, height, width, _ = images.shape
    x = self.embed_patches(images, self.patch_size)
    grid = height // self.patch_size, width // self.patch_size
    return x.reshape(b, *grid, self.width)


class PixelShuffle(SpatialViTUnet, kw_only=True):
  """Gives each of 2 x 2 pixels its own channels (arXiv:1609.05158)."""

  def double(self, x: Maps, features: int, name: str) -> Maps:
    """Returns a map of twice the height and width."""
    names = (axes.CHANNELS_IN, axes.CHANNELS)
    x = self.linear(name, x, 4 * features, names, bias=False)
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, features)


class Transposed(SpatialViTUnet, kw_only=True):
  """Doubles maps by transposed convolutions, as CycleGAN's ResNet does."""

  def double(self, x: Maps, features: int, name: str) -> Maps:
    """Returns a map of twice the height and width."""
    return convolutions.ConvTranspose(
      features=features,
      kernel_size=3,
      strides=2,
      pad=1,
      output_pad=1,
      use_bias=False,
      dtype=self.dtype,
      precision=self.precision,
      name=name,
    )(x)


class InstanceNorm(SpatialViTUnet, kw_only=True):
  """Normalizes each channel over the image on the way out."""

  def activate(self, x: Maps) -> Maps:
    """Applies instance norm and ReLU."""
    return resnet_generator.norm_relu(x)


VARIANTS = {
  'space': SpatialViTUnet,
  'no_residual': NoResidual,
  'no_fine_maps': NoFineMaps,
  'cut_patches': CutPatches,
  'pixel_shuffle': PixelShuffle,
  'transposed': Transposed,
  'instance_norm': InstanceNorm,
}


def chosen(name: str) -> contextlib.AbstractContextManager:
  """Builds `model.resample='space'` as this variant, while it lasts."""
  return mock.patch.dict(generators.RESAMPLING, space=VARIANTS[name])
