"""Rematerialization: gathered weights, and what a backward pass finds stored.

On accelerators a weight is cast to the compute dtype where it lives, then
gathered; its gradient is summed straight into the parts that devices own, in
that dtype too. REMAT lists by name which arrays of a block stay stored for the
backward pass; everything else is computed again. Gathered weights are always
gathered again (https://docs.jax.dev/en/latest/gradient-checkpointing.html).
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
from jax import ad_checkpoint
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit22b_jax.models import axes

# Arrays of a block that may be kept.
INPUT = 'block_input'  # what projections read: tokens, normalized, gathered
QKV = 'block_qkv'  # queries, keys, values
LOGITS = 'block_logits'  # of attention
ATTENDED = 'block_attended'  # the result of attention
HIDDEN = 'block_hidden'  # the MLP's hidden units before the GELU
ACTIVATED = 'block_activated'  # and after it
OUTPUT = 'block_output'  # of each branch, before a norm

# A kept array that the backward pass has no use for costs nothing.
REMAT = {
  'none': (INPUT, QKV, LOGITS, ATTENDED, HIDDEN, ACTIVATED, OUTPUT),
  'projections': (QKV, HIDDEN, OUTPUT),
  'hidden': (HIDDEN, OUTPUT),
  'full': (),
}

named = ad_checkpoint.checkpoint_name  # (arrays, a name that REMAT knows)


def policy(remat: str) -> Callable[..., bool]:
  """Returns the policy for `jax.checkpoint` of a key of REMAT."""
  policies = jax.checkpoint_policies
  by_name = policies.save_only_these_names(*REMAT[remat])
  if ATTENDED not in REMAT[remat]:
    return by_name
  return policies.save_from_both_policies(by_name, _is_cudnn_attention)


def _is_cudnn_attention(primitive: jax.extend.core.Primitive, *_, **__) -> bool:
  """Tells cuDNN's attention, whose two results nothing else can name."""
  return primitive.name == 'dot_product_attention_fwd_wrapper'


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_for_compute(
  x: Float[Array, '*S'], names: tuple[str | None, ...], dtype: DTypeLike
) -> Float[Array, '*S']:
  """Casts a parameter for products and gathers all but its SPLIT axes.

  Args:
    x: the parameter, float32.
    names: its logical axes.
    dtype: of the products.
  """
  whole = tuple(n if n in axes.SPLIT_IN_PRODUCTS else None for n in names)
  x = nn.with_logical_constraint(x.astype(dtype), names)
  return nn.with_logical_constraint(x, whole)


def _forward(x, names, dtype):
  return gather_for_compute(x, names, dtype), None


def _backward(names, dtype, nothing, g):
  del dtype, nothing
  # A constraint on the gradient alone lets the sum over devices be scattered.
  g = nn.with_logical_constraint(g, names)
  return (g.astype(jnp.float32),)


gather_for_compute.defvjp(_forward, _backward)
