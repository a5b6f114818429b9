"""Transformer blocks: sequential (ViT) and parallel (ViT-22B), by fields.

A named block is a row of `PRESETS`; every property of a row is a field that can
be set apart from the others. n is a norm:

    vit                 x + Attn(n x), then x + MLP(n x)
    vit22b              y = n x;  x + Attn(y) + MLP(y)
    vit22b_mlp_norm     y = n x;  x + n MLP(y) + Attn(y)      (Equation 2)
    released_vit        as vit, as the paper's authors released it
    released            x + n(Attn(x) + MLP(x)), as they released it
    released_unnormed   x + Attn(x) + MLP(x)

    >>> ours, theirs = PRESETS['vit22b'], PRESETS['released']
    >>> ours.pre_norm, ours.qk_norm, ours.sum_norm
    (True, True, False)
    >>> theirs.pre_norm, theirs.qk_norm, theirs.sum_norm
    (False, True, True)

Sources: "Deeper Inside Deep ViT", section 3.1; ViT, arXiv:2010.11929, section
3.1; ViT-22B, arXiv:2302.05442, section 2.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import axes, backend, inits, memory, ops

Tokens = Float[Array, 'B L D']
Stats = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """What a block's name stands for, with the head its authors put on it."""

  form: str = 'parallel'
  fused_output: bool = True  # one output projection, so one output bias
  pre_norm: bool = True
  qk_norm: bool = True
  mlp_norm: bool = False
  sum_norm: bool = False
  norm: str = 'layer'
  norm_scale: bool = True
  norm_bias: bool = False
  eps: float = 1e-6
  qkv_bias: bool = False
  softmax_scale: str = 'head'
  final_norm: bool = True
  head: str = 'linear'
  init: str = 'vit'


_VIT = Preset(
  form='sequential',
  fused_output=False,
  qk_norm=False,
  norm_bias=True,
  qkv_bias=True,
)
_RELEASED = Preset(
  fused_output=False,
  pre_norm=False,
  sum_norm=True,
  norm_scale=False,
  eps=1e-5,
  softmax_scale='width',
  final_norm=False,
  head='mlp_bn',
  init='torch',
)
PRESETS = {
  'vit': _VIT,
  'vit22b': Preset(),
  'vit22b_mlp_norm': Preset(mlp_norm=True),
  'released_vit': dataclasses.replace(
    _VIT,
    eps=1e-5,
    qkv_bias=False,
    softmax_scale='width',
    final_norm=False,
    head='mlp',
    init='torch',
  ),
  'released': _RELEASED,
  'released_unnormed': dataclasses.replace(
    _RELEASED, sum_norm=False, head='mlp'
  ),
}


class Projection(nn.Module):
  """Kernel and bias of one projection; `ops` decides how to multiply them.

  Attributes:
    shape: of the kernel.
    axes: its logical names.
    dtype: of the products, see `memory.weight`.
    kernel_init: of the kernel.
    bias_shape: None for no bias.
    bias_init: of the bias.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  dtype: str
  kernel_init: inits.Initializer
  bias_shape: tuple[int, ...] | None = None
  bias_init: inits.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self) -> tuple[Array, Array | None]:
    """Returns kernel and bias (None without one)."""
    init = nn.with_logical_partitioning(self.kernel_init, self.axes)
    kernel = self.param('kernel', init, self.shape, jnp.float32)
    kernel = memory.weight(kernel, self.axes, self.dtype)
    if self.bias_shape is None:
      return kernel, None
    names = self.axes[-len(self.bias_shape) :]
    names = names if len(names) > 1 else (axes.NORM,)
    init = nn.with_logical_partitioning(self.bias_init, names)
    return kernel, self.param('bias', init, self.bias_shape, jnp.float32)


class Norm(nn.Module):
  """LayerNorm, or RMSNorm: no centring and no bias. `ops.norm` with its arrays.

  Attributes:
    kind: 'layer' or 'rms'.
    use_scale: whether there is a scale.
    use_bias: whether there is a bias.
    eps: added to the variance.
  """

  kind: str
  use_scale: bool
  use_bias: bool
  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    """Normalises over the last axis, in float32; the result has x's dtype."""

    def vector(name, init):
      init = nn.with_logical_partitioning(init, (axes.NORM,))
      return self.param(name, init, x.shape[-1:], jnp.float32)

    scale = vector('scale', nn.initializers.ones) if self.use_scale else None
    bias = vector('bias', nn.initializers.zeros) if self.use_bias else None
    return ops.norm(x, scale, bias, self.eps, centre=self.kind == 'layer')


class Transformer(nn.Module, kw_only=True):
  """The fields that blocks, and models made of blocks, have in common.

  Attributes:
    width: D.
    num_heads: N, a divisor of D.
    mlp_dim: F, hidden units of the MLP; a multiple of N in a parallel block.
    fused_output: attention and MLP leave through one projection with one bias.
      With an MLP norm they stay apart whatever this says.
    pre_norm: normalise the residual stream before the branches.
    qk_norm: normalise queries and keys of each head.
    mlp_norm: normalise the MLP's output.
    sum_norm: normalise the sum of both branches (parallel blocks only).
    norm: 'layer' or 'rms'.
    norm_scale: whether norms have a scale.
    norm_bias: whether norms have a bias.
    eps: of the norms.
    qkv_bias: whether queries, keys and values have a bias.
    softmax_scale: attention logits are divided by the root of the 'head'
      dimension or of the 'width'.
    init_kind: 'vit' or 'torch', see `inits`.
    dropout: rate, on hidden units of the MLP and on each branch's output.
    attention: 'xla', or 'cudnn' for flash attention on NVIDIA GPUs.
    dtype: of matrix products and the residual stream. Parameters, norms,
      softmax and logits are float32.
    precision: of matrix products, 'highest' or 'default'.
  """

  width: int
  num_heads: int
  mlp_dim: int
  fused_output: bool
  pre_norm: bool
  qk_norm: bool
  mlp_norm: bool
  sum_norm: bool
  norm: str
  norm_scale: bool
  norm_bias: bool
  eps: float
  qkv_bias: bool
  softmax_scale: str
  init_kind: str
  dropout: float = 0.0
  attention: str = 'xla'
  dtype: str = 'float32'
  precision: str = 'highest'

  @property
  def head_dim(self) -> int:
    """K."""
    return self.width // self.num_heads

  def shared_fields(self) -> dict[str, Any]:
    """The fields above by name, for the parts of a larger model."""
    fields = dataclasses.fields(Transformer)
    names = [f.name for f in fields if f.name not in ('name', 'parent')]
    return {name: getattr(self, name) for name in names}

  def make_norm(self, name: str) -> Norm:
    """A norm over the last axis."""
    return Norm(
      kind=self.norm,
      use_scale=self.norm_scale,
      use_bias=self.norm_bias,
      eps=self.eps,
      name=name,
    )

  def projection(
    self,
    name: str,
    shape: tuple[int, ...],
    names: tuple[str, ...],
    fan_in: int,
    bias_shape: tuple[int, ...] | None = None,
  ) -> tuple[Array, Array | None]:
    """Kernel and bias of a projection that sums `fan_in` products."""
    return Projection(
      shape,
      names,
      self.dtype,
      inits.kernel(self.init_kind, fan_in),
      bias_shape,
      inits.bias(self.init_kind, fan_in),
      name=name,
    )()


class Block(Transformer, kw_only=True):
  """What the two forms share: attention, and what happens to a branch.

  Attributes:
    stochastic_depth: the chance that a branch is left out for an image.
  """

  stochastic_depth: float = 0.0

  def _attend(
    self, qkv: ops.Qkv, capture: bool
  ) -> tuple[Float[Array, 'B N L K'], Stats]:
    q, k, v = memory.named(qkv, memory.QKV)
    if self.qk_norm:
      q, k = self.make_norm('q_norm')(q), self.make_norm('k_norm')(k)
    names = (axes.BATCH, axes.HEADS, axes.LENGTH, None)
    q, k, v = (nn.with_logical_constraint(t, names) for t in (q, k, v))
    root = self.head_dim if self.softmax_scale == 'head' else self.width
    if self.attention == 'cudnn' and not capture:
      o = ops.flash_attention(q, k, v, root**-0.5)
      return memory.named(o, memory.ATTENDED), {}
    o, logits, weights = ops.attention(q, k, v, root**-0.5, self.precision)
    entropy = jax.scipy.special.entr(weights).sum(-1).mean()
    stats = {
      'attn_logit_max': logits.max(),
      'attn_entropy': entropy,
      'attn_map': weights,
    }
    return memory.named(o, memory.ATTENDED), stats

  def _input(self, x: Tokens, norm: str) -> Tokens:
    """What projections read: all tokens, normalised where they were."""
    if self.pre_norm:
      x = self.make_norm(norm)(x)
    elif backend.on_cpu():
      return x  # any mark would change the order in which gradients are added
    x = nn.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, None))
    return memory.named(x, memory.INPUT)

  def _hidden(self, h: Array, train: bool) -> Array:
    h = ops.gelu(memory.named(h, memory.HIDDEN))
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    grouped = (axes.MLP,) if h.ndim == 3 else (axes.HEADS, None)
    h = nn.with_logical_constraint(h, (axes.BATCH, axes.LENGTH, *grouped))
    return memory.named(h, memory.ACTIVATED)

  def _product(self, y: Tokens) -> Tokens:
    """An output projection's sums, each token's where its stream is."""
    y = nn.with_logical_constraint(y, (axes.BATCH, axes.TOKENS, None))
    return memory.named(y, memory.OUTPUT)

  def _branch(
    self, x: Tokens, train: bool, rate: Float[Array, ''] | None
  ) -> Tokens:
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    if rate is not None and train:
      shape = (len(x), 1, 1)
      keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - rate, shape)
      return jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)
    drop = nn.Dropout(self.stochastic_depth, broadcast_dims=(1, 2))
    return drop(x, deterministic=not train)

  def _stream(
    self, x: Tokens, stats: Stats, capture: bool
  ) -> tuple[Tokens, Stats]:
    x = nn.with_logical_constraint(x, (axes.BATCH, axes.TOKENS, None))
    if not capture:
      return x, {}
    square = jnp.square(x.astype(jnp.float32))
    return x, {**stats, 'residual_rms': jnp.sqrt(square.mean())}


class SequentialBlock(Block):
  """x + Attn(n x), then x + MLP(n x): the ViT block."""

  @nn.compact
  def __call__(
    self,
    x: Tokens,
    train: bool = False,
    capture: bool = False,
    rate: Float[Array, ''] | None = None,
  ) -> tuple[Tokens, Stats]:
    """Applies the block.

    Args:
      x: tokens.
      train: whether dropout and stochastic depth are on.
      capture: whether to return statistics, for which attention is computed in
        the form that can be looked at.
      rate: in place of `stochastic_depth`, in a scan over blocks.

    Returns:
      Tokens, and with `capture` the statistics of `ViT.__call__` for this
      block.
    """
    n, k, d, f = self.num_heads, self.head_dim, self.width, self.mlp_dim
    qkv_axes = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
    qkv_bias = (n, 3 * k) if self.qkv_bias else None
    y = self._input(x, 'attn_in_norm')
    weights = self.projection('qkv', (d, n, 3 * k), qkv_axes, d, qkv_bias)
    qkv = ops.project_heads_in(y, *weights, 3, self.precision)
    o, stats = self._attend(qkv, capture)
    out_axes = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    weights = self.projection('attn_out', (n, k, d), out_axes, d, (d,))
    y = self._product(ops.project_heads_out(o, *weights, self.precision))
    x += self._branch(y, train, rate)

    y = self._input(x, 'mlp_in_norm')
    names = (axes.EMBED, axes.MLP)
    weights = self.projection('mlp_in', (d, f), names, d, (f,))
    h = self._hidden(ops.linear(y, *weights, self.precision), train)
    names = (axes.MLP, axes.EMBED)
    weights = self.projection('mlp_out', (f, d), names, f, (d,))
    y = self._product(ops.linear(h, *weights, self.precision))
    y = self.make_norm('mlp_out_norm')(y) if self.mlp_norm else y
    return self._stream(x + self._branch(y, train, rate), stats, capture)


class ParallelBlock(Block):
  """y = n x; x + Attn(y) + MLP(y): the ViT-22B block and its variants.

  The input projections are one kernel [D, N, 3K + F/N], grouped by head and
  ordered q, k, v, mlp, so that a device that holds some of the heads holds all
  that they need. Its bias covers the MLP's columns, with `qkv_bias` all. The
  output projections are one kernel [N, K + F/N, D], ordered attention, mlp,
  unless a norm or a second bias keeps the branches apart.
  """

  @nn.compact
  def __call__(
    self,
    x: Tokens,
    train: bool = False,
    capture: bool = False,
    rate: Float[Array, ''] | None = None,
  ) -> tuple[Tokens, Stats]:
    """Applies the block: see `SequentialBlock.__call__`."""
    n, k, d = self.num_heads, self.head_dim, self.width
    j = self.mlp_dim // n
    y = self._input(x, 'in_norm')
    kernel, bias = self.projection(
      'in_proj',
      (d, n, 3 * k + j),
      (axes.EMBED, axes.HEADS, axes.HEAD_DIM),
      d,
      (n, 3 * k + j if self.qkv_bias else j),
    )
    qkv, h = ops.project_in(y, kernel, bias, k, self.precision)
    o, stats = self._attend(qkv, capture)
    h = self._hidden(h, train)
    y = self._output(o, h)
    y = self.make_norm('sum_norm')(y) if self.sum_norm else y
    return self._stream(x + self._branch(y, train, rate), stats, capture)

  def _output(
    self, o: Float[Array, 'B N L K'], h: Float[Array, 'B L N J']
  ) -> Tokens:
    n, k, d, j = self.num_heads, self.head_dim, self.width, h.shape[-1]
    names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    if self.fused_output and not self.mlp_norm:
      attn, mlp = (inits.kernel(self.init_kind, m) for m in (d, n * j))
      kernel, bias = Projection(
        (n, k + j, d),
        names,
        self.dtype,
        inits.stacked([(k, attn), (j, mlp)]),
        (d,),
        inits.bias(self.init_kind, d, n * j),
        name='out_proj',
      )()
      y = ops.project_out(o, h, kernel, bias, self.precision)
      return self._product(y)
    weights = self.projection('attn_out', (n, k, d), names, d, (d,))
    y = self._product(ops.project_heads_out(o, *weights, self.precision))
    weights = self.projection('mlp_out', (n, j, d), names, n * j, (d,))
    mlp = self._product(ops.project_units(h, *weights, self.precision))
    return y + (self.make_norm('mlp_norm')(mlp) if self.mlp_norm else mlp)


FORMS = {'sequential': SequentialBlock, 'parallel': ParallelBlock}
