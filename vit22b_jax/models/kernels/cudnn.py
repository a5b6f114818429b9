"""Attention by cuDNN on NVIDIA GPUs, which never stores the attention map."""

import re

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit22b_jax.models.kernels.reference import Heads

RULE = 'bfloat16 or float16 and heads of a multiple of 8 up to 128'


def runs_here() -> bool:
  """Tells whether the GPU has the kernel: NVIDIA's from Ampere (8.0) on.

  True without a GPU, where programs are compiled for one that is planned.
  """
  device = jax.devices()[0]
  if device.platform != 'gpu':
    return True
  found = re.match(r'(\d+)\.\d+$', device.compute_capability)
  return bool(found) and int(found[1]) >= 8


def supports(dtype: DTypeLike, head_dim: int) -> bool:
  """Tells whether cuDNN's kernel, forward and backward, follows RULE."""
  half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  return half and head_dim % 8 == 0 and head_dim <= 128


def attention(q: Heads, k: Heads, v: Heads, scale: float) -> Heads:
  """Computes softmax(scale q k^T) v for any number of tokens.

  The backward kernel takes even lengths: an odd one gets a token more, which
  cuDNN leaves out, forward and backward, by its own sequence lengths. Has no
  second derivative.
  """
  length = q.shape[2]
  q, k, v = (jnp.swapaxes(t, 1, 2) for t in (q, k, v))
  lengths = {}
  if length % 2:
    sides = ((0, 0), (0, 1), (0, 0), (0, 0))
    q, k, v = (jnp.pad(t, sides) for t in (q, k, v))
    count = jnp.full(len(q), length, jnp.int32)
    lengths = {'query_seq_lengths': count, 'key_value_seq_lengths': count}
  o = jax.nn.dot_product_attention(
    q, k, v, scale=scale, implementation='cudnn', **lengths
  )
  return jnp.swapaxes(o[:, :length], 1, 2)
