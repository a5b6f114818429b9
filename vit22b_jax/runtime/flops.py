"""Computes model FLOPs utilization: useful arithmetic over the peak.

    work = flops.training_flops(depth=12, width=384, mlp_dim=1536, tokens=65)
    flops.mfu(images_per_second * work, jax.devices()[0], num_devices=8)

ViT-22B's published utilization, from its 1,150 tokens a second on each v4 chip:

    >>> work = training_flops(depth=48, width=6144, mlp_dim=24576, tokens=256)
    >>> round(work * 1150 / 256 / chips.named('v4').flops, 3)
    0.549

Useful means what the model's definition asks for (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B): recomputed activations, diagnostics and the input
gradient's second pass count as time, not as work.
"""

import functools
import math
import timeit

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit22b_jax.models import convolutions, vit, vitunet
from vit22b_jax.runtime import chips

_PROBE_SIZE = 1536
_PROBE_REPEATS = 5


def training_flops(
  *, depth: int, width: int, mlp_dim: int, tokens: int
) -> float:
  """Counts the FLOPs of a training step for one image.

  6 FLOPs for each matrix weight and token, and 12 * depth * width * tokens^2
  for the two products inside attention, whose mask is full, so nothing is
  halved. The weights are those of the blocks, 4 width^2 + 2 width mlp_dim each.
  Patch embedding, head, norms and softmax are left out, as in the published
  54.9 % of ViT-22B (arXiv:2302.05442): under 2 % of the work from S/16 on.
  """
  weights = depth * (4 * width**2 + 2 * width * mlp_dim)
  return 6.0 * weights * tokens + 12.0 * depth * width * tokens**2


def classifier_flops(model: vit.ViT, image_size: int) -> float:
  """Returns `training_flops` of a classifier, for square images."""
  return training_flops(
    depth=model.depth,
    width=model.width,
    mlp_dim=model.mlp_dim,
    tokens=(image_size // model.patch_size) ** 2 + (model.pool == 'cls'),
  )


def image_flops(module: nn.Module, image_size: tuple[int, int]) -> float:
  """Counts a generator's or discriminator's FLOPs forward for one image.

  Those of its convolutions, two for each product of a weight and a pixel (a
  transposed one's pixels are its input's), and of its blocks, as in
  `training_flops`. A formulation that needs fewer counts as a faster one.
  The module takes images [B, H, W, 3]; `image_size` is H and W.
  """
  counted = []

  def count(call, args, kwargs, context):
    out, layer = call(*args, **kwargs), context.module
    if context.method_name != '__call__':
      return out
    if isinstance(layer, convolutions.Conv | convolutions.ConvTranspose):
      pixels = out if isinstance(layer, convolutions.Conv) else args[0]
      weights = layer.kernel_size**2 * args[0].shape[-1] * layer.features
      counted.append(2.0 * weights * math.prod(pixels.shape[1:3]))
    elif isinstance(layer, vitunet.Stage):
      sizes = {k: getattr(layer, k) for k in ('depth', 'width', 'mlp_dim')}
      counted.append(training_flops(**sizes, tokens=args[0].shape[1]) / 3)
    return out

  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
  with nn.intercept_methods(count):
    jax.eval_shape(module.init, jax.random.key(0), images)
  return sum(counted)


def mfu(flops_per_second: float, device: jax.Device, num_devices: int) -> float:
  """Returns the utilization in [0, 1]: the rate over the devices' peak.

  `flops_per_second` are over all of the `num_devices` of one kind.
  """
  return flops_per_second / (peak(device) * num_devices)


@functools.cache
def peak(device: jax.Device) -> float:
  """Returns one device's peak FLOP/s: listed, else from a timed product.

  The peaks of `chips` are for bfloat16 whatever a run computes in. A CPU, or a
  chip that isn't listed, is timed on one float32 matrix product, so there the
  utilization is relative to what the machine does in fact reach. Simulated CPU
  devices share one machine and its peak.
  """
  chip = chips.of_device(device.device_kind)
  if chip is not None:
    return chip.flops
  a = jax.device_put(jnp.ones((_PROBE_SIZE, _PROBE_SIZE)), device)
  product = jax.jit(jnp.matmul).lower(a, a).compile()
  seconds = timeit.repeat(
    lambda: product(a, a).block_until_ready(), number=1, repeat=_PROBE_REPEATS
  )
  sharing = jax.local_device_count() if device.platform == 'cpu' else 1
  return 2.0 * _PROBE_SIZE**3 / min(seconds) / sharing
