"""Products, norms and convolutions, with one set of formulas per backend.

    y = kernels.linear(x, kernel, bias, precision)

`reference` holds the definitions, which GPUs and TPUs run. `cpu` has the same
functions with the same values and gradients, in the forms that XLA's CPU
backend compiles best. The functions of this module choose a set when they are
traced: by the platform of the mesh in context, or by what jax runs on. The
environment variable VIT22B_JAX_KERNELS=reference forces the reference on CPUs.

`B L D` are batch, tokens and width, `N K` heads and head size, `J = F/N` a
head's share of the MLP; maps are `B H W C`. Functions compute in the dtype of
their first argument.
"""

import functools
import os
import types
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.models import axes, remat
from vit22b_jax.models.kernels import cpu, cudnn, reference

VARIABLE = 'VIT22B_JAX_KERNELS'


def platform() -> str:
  """Returns what the trace is for: 'cpu', 'gpu' or 'tpu'."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend()
  return 'gpu' if device.platform in ('cuda', 'rocm') else device.platform


def active() -> types.ModuleType:
  """Returns the set of formulas for the trace: `cpu` or `reference`.

  Raises:
    UserError: VIT22B_JAX_KERNELS is neither 'auto' nor 'reference'.
  """
  wanted = os.environ.get(VARIABLE, 'auto')
  errors.validate_choice(VARIABLE, wanted, ('auto', 'reference'))
  return cpu if wanted == 'auto' and platform() == 'cpu' else reference


def takes_cudnn(kind: str, dtype: str, head_dim: int) -> bool:
  """Tells whether a trace computes attention by cuDNN or by XLA.

  Raises:
    UserError: the kind is 'cudnn', not 'auto' or 'xla', without a GPU.
  """
  on_gpu = platform() == 'gpu' and cudnn.runs_here()
  if kind == 'cudnn' and not on_gpu:
    raise errors.UserError(
      "model.attention='cudnn' needs an NVIDIA GPU of compute capability 8.0 "
      f'(Ampere) or newer, and this process runs on '
      f"{jax.devices()[0].device_kind}: use 'auto' or 'xla'."
    )
  return kind != 'xla' and on_gpu and cudnn.supports(dtype, head_dim)


def _dispatched(function: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function of `reference` to call the active set's instead."""

  @functools.wraps(function)
  def call(*args, **kwargs):
    return getattr(active(), function.__name__)(*args, **kwargs)

  return call


norm = _dispatched(reference.norm)
linear = _dispatched(reference.linear)
project_out = _dispatched(reference.project_out)
conv = _dispatched(reference.conv)
instance_norm = _dispatched(reference.instance_norm)
# One formula suits all backends.
gelu = reference.gelu
attention = reference.attention
conv_transpose = reference.conv_transpose


def materialize(x: Any) -> Any:
  """Returns arrays that a CPU must not recompute within whatever reads them."""
  return cpu.materialize(x) if active() is cpu else x


def gather_for_compute(
  x: Float[Array, '*S'], names: tuple[str | None, ...], dtype: DTypeLike
) -> Float[Array, '*S']:
  """Returns a parameter for products, by `remat`; on a CPU as it is."""
  return x if active() is cpu else remat.gather_for_compute(x, names, dtype)


def block_input(x: Float[Array, 'B L D']) -> Float[Array, 'B L D']:
  """Marks the tokens that a block's projections read, without a pre-norm.

  Not on a CPU: a mark changes the order in which gradients add up.
  """
  if active() is cpu:
    return x
  x = nn.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, None))
  return remat.named(x, remat.INPUT)


def checkpoint_policy(name: str) -> Callable[..., bool] | None:
  """Returns the policy of a key of `remat.REMAT`; None stores everything."""
  keeps_all = name == 'none' and active() is cpu  # nothing is gathered there
  return None if keeps_all else remat.policy(name)


def run_once_options() -> dict[str, int] | None:
  """Returns jit's `compiler_options` for a program that runs once.

  LLVM's optimizations take a CPU longer than the program.
  """
  return {'xla_backend_optimization_level': 0} if active() is cpu else None
