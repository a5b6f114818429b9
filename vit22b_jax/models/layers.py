"""The layers of transformers, and the fields that blocks and models share."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import axes, inits, kernels

Heads = Float[Array, 'B N L K']


def project_heads_in(
  x: Float[Array, 'B L D'],
  kernel: Float[Array, 'D N E'],
  bias: Float[Array, 'N E'] | None,
  parts: int,
  precision: str,
) -> tuple[Heads, ...]:
  """Projects tokens to `parts` arrays of heads: queries, keys, values.

  They are equal slices, in this order, of each head's columns.
  """
  bias = None if bias is None else bias.reshape(-1)
  y = kernels.linear(x, kernel.reshape(len(kernel), -1), bias, precision)
  y = jnp.split(y.reshape(*x.shape[:2], *kernel.shape[1:]), parts, axis=-1)
  return tuple(kernels.materialize(jnp.swapaxes(t, 1, 2)) for t in y)


class Projection(nn.Module):
  """Kernel and bias of one projection; `kernels` multiplies them."""

  shape: tuple[int, ...]  # of the kernel
  axes: tuple[str, ...]  # its logical names
  dtype: str  # of the products
  kernel_init: inits.Initializer
  bias_shape: tuple[int, ...] | None = None
  bias_init: inits.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self) -> tuple[Array, Array | None]:
    """Returns kernel and bias (None without one)."""
    init = nn.with_logical_partitioning(self.kernel_init, self.axes)
    kernel = self.param('kernel', init, self.shape, jnp.float32)
    kernel = kernels.gather_for_compute(kernel, self.axes, self.dtype)
    if self.bias_shape is None:
      return kernel, None
    names = self.axes[-len(self.bias_shape) :]
    names = names if len(names) > 1 else (axes.NORM,)
    init = nn.with_logical_partitioning(self.bias_init, names)
    return kernel, self.param('bias', init, self.bias_shape, jnp.float32)


class Norm(nn.Module):
  """LayerNorm, or RMSNorm: no centering and no bias."""

  kind: str  # 'layer' or 'rms'
  use_scale: bool
  use_bias: bool
  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    """Normalizes the last axis, in float32; the result has x's dtype."""

    def vector(name, init):
      init = nn.with_logical_partitioning(init, (axes.NORM,))
      return self.param(name, init, x.shape[-1:], jnp.float32)

    scale = vector('scale', nn.initializers.ones) if self.use_scale else None
    bias = vector('bias', nn.initializers.zeros) if self.use_bias else None
    return kernels.norm(x, scale, bias, self.eps, self.kind == 'layer')


class Transformer(nn.Module, kw_only=True):
  """The fields of blocks and models made of them; by default `vit22b`'s."""

  width: int  # D
  num_heads: int  # N, a divisor of D
  mlp_dim: int  # F, hidden units of the MLP; N divides it in a parallel block
  # One output projection of attention and MLP, with one bias, unless a norm is
  # on the MLP.
  fused_output: bool = True
  pre_norm: bool = True  # normalize the residual stream before the branches,
  qk_norm: bool = True  # queries and keys of each head,
  mlp_norm: bool = False  # the MLP's output,
  sum_norm: bool = False  # the sum of both branches (parallel blocks only)
  norm: str = 'layer'  # or 'rms'
  norm_scale: bool = True  # norms have a learned scale
  norm_bias: bool = False  # and bias
  eps: float = 1e-6  # of the norms
  qkv_bias: bool = False
  softmax_scale: str = 'head'  # divide by the root of head_dim, or of 'width'
  init_kind: str = 'vit'  # or 'torch', see `inits`
  dropout: float = 0.0  # of the MLP's hidden units and each branch's output
  attention: str = 'auto'  # or 'xla', 'cudnn', see `kernels.takes_cudnn`
  # Of products and the residual stream; parameters, norms, softmax and logits
  # are float32.
  dtype: str = 'float32'
  precision: str = 'highest'  # of matrix products, or 'default'

  @property
  def head_dim(self) -> int:
    """K."""
    return self.width // self.num_heads

  def shared_fields(self) -> dict[str, Any]:
    """Returns the fields above by name, for the parts of a larger model."""
    fields = dataclasses.fields(Transformer)
    names = [f.name for f in fields if f.name not in ('name', 'parent')]
    return {name: getattr(self, name) for name in names}

  def make_norm(self, name: str) -> Norm:
    """Returns a norm over the last axis."""
    fields = self.norm, self.norm_scale, self.norm_bias, self.eps
    return Norm(*fields, name=name)

  def projection(
    self,
    name: str,
    shape: tuple[int, ...],
    names: tuple[str, ...],
    fan_in: int,
    bias_shape: tuple[int, ...] | None = None,
  ) -> tuple[Array, Array | None]:
    """Returns kernel and bias of a projection that sums `fan_in` products."""
    init = inits.kernel(self.init_kind, fan_in)
    bias_init = inits.bias(self.init_kind, fan_in)
    fields = shape, names, self.dtype, init, bias_shape, bias_init
    return Projection(*fields, name=name)()

  def linear(
    self,
    name: str,
    x: Float[Array, '*B I'],
    features: int,
    names: tuple[str, str],
    bias: bool = True,
  ) -> Float[Array, '*B F']:
    """Projects the last axis to `features`; `names` are the kernel's axes."""
    size = x.shape[-1]
    shape = (features,) if bias else None
    weights = self.projection(name, (size, features), names, size, shape)
    return kernels.linear(x, *weights, self.precision)

  def heads_in(
    self, name: str, x: Float[Array, 'B L D'], parts: int, bias: bool
  ) -> tuple[Heads, ...]:
    """Projects tokens to `parts` arrays of heads; see `project_heads_in`."""
    d, n, e = self.width, self.num_heads, parts * self.head_dim
    names = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
    shape = (n, e) if bias else None
    weights = self.projection(name, (d, n, e), names, d, shape)
    return project_heads_in(x, *weights, parts, self.precision)

  def heads_out(self, name: str, o: Heads) -> Float[Array, 'B L D']:
    """Projects what attention gives to the model's width."""
    d, n, k = self.width, self.num_heads, self.head_dim
    names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    kernel, bias = self.projection(name, (n, k, d), names, d, (d,))
    o = kernels.materialize(jnp.swapaxes(o, 1, 2)).reshape(len(o), -1, n * k)
    return kernels.linear(o, kernel.reshape(-1, d), bias, self.precision)

  def embed_patches(
    self, images: Float[Array, 'B H W C'], size: int
  ) -> Float[Array, 'B L D']:
    """Projects patches, row by row, each flattened as (row, column, C)."""
    b, height, width, c = images.shape
    x = images.astype(self.dtype)
    x = x.reshape(b, height // size, size, width // size, size, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)
    names = (axes.PATCH, axes.EMBED)
    return self.linear('patch_embedding', x, self.width, names)
