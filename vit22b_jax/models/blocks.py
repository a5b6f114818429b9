"""Transformer blocks: sequential (ViT) and parallel (ViT-22B), by fields.

A named block is a row of `PRESETS`, the fields in which it differs from
`vit22b`; each can be set apart from the others. n is a norm:

    vit                 x + Attn(n x), then x + MLP(n x)
    vit22b              y = n x;  x + Attn(y) + MLP(y)
    vit22b_mlp_norm     y = n x;  x + n MLP(y) + Attn(y)      (Equation 2)
    released_vit        as vit, as the paper's authors released it
    released            x + n(Attn(x) + MLP(x)), as they released it
    released_unnormed   x + Attn(x) + MLP(x)

Sources: "Deeper Inside Deep ViT", section 3.1; ViT, arXiv:2010.11929, section
3.1; ViT-22B, arXiv:2302.05442, section 2.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import axes, inits, kernels, layers, remat

Tokens = Float[Array, 'B L D']
Stats = dict[str, Array]


_VIT = {
  'form': 'sequential',
  'fused_output': False,
  'qk_norm': False,
  'norm_bias': True,
  'qkv_bias': True,
}
# What the authors' code has in all of its blocks.
_RELEASED = {
  'fused_output': False,
  'eps': 1e-5,
  'qkv_bias': False,
  'softmax_scale': 'width',
  'final_norm': False,
  'head': 'mlp',
  'init': 'torch',
}
_UNNORMED = {**_RELEASED, 'pre_norm': False, 'norm_scale': False}
PRESETS: dict[str, dict[str, Any]] = {
  'vit': _VIT,
  'vit22b': {},
  'vit22b_mlp_norm': {'mlp_norm': True},
  'released_vit': {**_VIT, **_RELEASED},
  'released': {**_UNNORMED, 'sum_norm': True, 'head': 'mlp_bn'},
  'released_unnormed': _UNNORMED,
}


class Block(layers.Transformer, kw_only=True):
  """The parts of both forms: attention, and the treatment of a branch."""

  stochastic_depth: float = 0.0  # chance to leave out a branch for an image

  def _attend(
    self, qkv: tuple[Array, Array, Array], capture: bool
  ) -> tuple[Float[Array, 'B N L K'], Stats]:
    q, k, v = remat.named(qkv, remat.QKV)
    if self.qk_norm:
      q, k = self.make_norm('q_norm')(q), self.make_norm('k_norm')(k)
    names = (axes.BATCH, axes.HEADS, axes.LENGTH, None)
    q, k, v = (nn.with_logical_constraint(t, names) for t in (q, k, v))
    root = self.head_dim if self.softmax_scale == 'head' else self.width
    cudnn = kernels.takes_cudnn(self.attention, self.dtype, self.head_dim)
    if cudnn and not capture:
      return kernels.cudnn.attention(q, k, v, root**-0.5), {}
    o, logits, weights = kernels.attention(q, k, v, root**-0.5, self.precision)
    stats = {
      'attn_logit_max': logits.max(),
      'attn_entropy': jax.scipy.special.entr(weights).sum(-1).mean(),
      'attn_map': weights,
    }
    return remat.named(o, remat.ATTENDED), stats

  def _input(self, x: Tokens, norm: str) -> Tokens:
    """Returns the tokens that projections read, normalized or not."""
    if not self.pre_norm:
      return kernels.block_input(x)
    x = self.make_norm(norm)(x)
    x = nn.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, None))
    return remat.named(x, remat.INPUT)

  def _hidden(self, h: Array, train: bool) -> Array:
    h = kernels.gelu(remat.named(h, remat.HIDDEN))
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    grouped = (axes.MLP,) if h.ndim == 3 else (axes.HEADS, None)
    h = nn.with_logical_constraint(h, (axes.BATCH, axes.LENGTH, *grouped))
    return remat.named(h, remat.ACTIVATED)

  def _product(self, y: Tokens) -> Tokens:
    """Places an output projection's sums, each token's with its stream."""
    y = nn.with_logical_constraint(y, (axes.BATCH, axes.TOKENS, None))
    return remat.named(y, remat.OUTPUT)

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
    """Returns tokens, and with `capture` the statistics of `ViT.__call__`.

    Training turns dropout and stochastic depth on. To capture, XLA computes
    attention. `rate` replaces `stochastic_depth` in a scan over blocks.
    """
    y = self._input(x, 'attn_in_norm')
    o, stats = self._attend(self.heads_in('qkv', y, 3, self.qkv_bias), capture)
    y = self._product(self.heads_out('attn_out', o))
    x += self._branch(y, train, rate)

    y = self._input(x, 'mlp_in_norm')
    h = self.linear('mlp_in', y, self.mlp_dim, (axes.EMBED, axes.MLP))
    h = self._hidden(h, train)
    y = self._product(
      self.linear('mlp_out', h, self.width, (axes.MLP, axes.EMBED))
    )
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
    # Two products, so that either can be computed again without the other.
    mlp_kernel = kernel[:, :, 3 * k :].reshape(d, n * j)
    mlp_bias = bias[:, -j:].reshape(-1)
    h = kernels.linear(y, mlp_kernel, mlp_bias, self.precision)
    qkv_bias = bias[:, : 3 * k] if self.qkv_bias else None
    qkv = layers.project_heads_in(
      y, kernel[:, :, : 3 * k], qkv_bias, 3, self.precision
    )
    h = h.reshape(*h.shape[:2], n, j)
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
      init = inits.stacked([(k, attn), (j, mlp)])
      fields = (n, k + j, d), names, self.dtype, init, (d,)
      bias_init = inits.bias(self.init_kind, d, n * j)
      weights = layers.Projection(*fields, bias_init, name='out_proj')()
      return self._product(kernels.project_out(o, h, *weights, self.precision))
    y = self._product(self.heads_out('attn_out', o))
    kernel, bias = self.projection('mlp_out', (n, j, d), names, n * j, (d,))
    h, kernel = h.reshape(*h.shape[:2], n * j), kernel.reshape(-1, d)
    mlp = self._product(kernels.linear(h, kernel, bias, self.precision))
    return y + (self.make_norm('mlp_norm')(mlp) if self.mlp_norm else mlp)


FORMS = {'sequential': SequentialBlock, 'parallel': ParallelBlock}
