"""Initializers of the two families of presets, by name.

`vit`: positions N(0, 0.02), class token and last layer zero, as in
google-research/vision_transformer; but fan-in normal matrices and zero biases,
where its blocks have Xavier uniform and MLP biases N(0, 1e-6). `torch`: what
PyTorch's `nn.Linear` does, weights and biases uniform within 1/sqrt(fan_in),
positions and class token N(0, 1), as in the released code.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.nn import initializers

Initializer = initializers.Initializer
POSITIONS = {'vit': initializers.normal(0.02), 'torch': initializers.normal(1)}
CLASS_TOKEN = {'vit': initializers.zeros, 'torch': initializers.normal(1)}


def _uniform(bound: float) -> Initializer:
  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def kernel(kind: str, fan_in: int) -> Initializer:
  """Returns the init of a matrix whose output sums `fan_in` products."""
  if kind == 'torch':
    return _uniform(1 / math.sqrt(fan_in))
  return initializers.normal(1 / math.sqrt(fan_in))


def bias(kind: str, *fan_ins: int) -> Initializer:
  """Returns a bias's init; several fan-ins for a sum of several projections."""
  if kind != 'torch':
    return initializers.zeros
  inits = [_uniform(1 / math.sqrt(fan_in)) for fan_in in fan_ins]

  def init(key, shape, dtype=jnp.float32):
    keys = jax.random.split(key, len(inits))
    return sum(f(k, shape, dtype) for f, k in zip(inits, keys, strict=True))

  return init


def stacked(parts: Sequence[tuple[int, Initializer]]) -> Initializer:
  """Stacks matrices along axis 1: pairs of that axis's size and initializer.

  A fused projection starts as the projections it stands for would.
  """

  def init(key, shape, dtype=jnp.float32):
    keys = jax.random.split(key, len(parts))
    arrays = [
      part(k, (shape[0], size, *shape[2:]), dtype)
      for k, (size, part) in zip(keys, parts, strict=True)
    ]
    return jnp.concatenate(arrays, axis=1)

  return init


def head(kind: str, fan_in: int) -> Initializer:
  """Returns the init of the last matrix before the logits."""
  return kernel(kind, fan_in) if kind == 'torch' else initializers.zeros
