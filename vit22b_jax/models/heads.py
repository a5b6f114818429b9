"""From tokens to logits: multihead attention pooling and classifier heads."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import axes, inits, kernels, layers


class MapPool(layers.Transformer, kw_only=True):
  """Multihead attention pooling: one learned query looks at all tokens.

  x = Attn(probe, tokens), then x + MLP(n x). "Scaling Vision Transformers",
  arXiv:2106.04560, section 3.2, as big_vision's `MAPHead` does it.
  """

  @nn.compact
  def __call__(self, x: Float[Array, 'B L D']) -> Float[Array, 'B D']:
    """Pools the tokens of each image."""
    d, f = self.width, self.mlp_dim
    init = nn.with_logical_partitioning(
      inits.kernel(self.init_kind, d), (axes.NORM,)
    )
    probe = self.param('probe', init, (d,), jnp.float32)
    probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, d))
    (q,) = self.heads_in('query', probe, 1, bias=True)
    x = nn.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, None))
    k, v = self.heads_in('key_value', x, 2, bias=True)
    o, _, _ = kernels.attention(q, k, v, self.head_dim**-0.5, self.precision)
    x = self.heads_out('out', o)[:, 0]

    y = self.make_norm('mlp_in_norm')(x)
    y = self.linear('mlp_in', y, f, (axes.EMBED, axes.MLP))
    return x + self.linear(
      'mlp_out', kernels.gelu(y), d, (axes.MLP, axes.EMBED)
    )


class BatchNorm(nn.Module):
  """Batch normalization over the global batch, with PyTorch's conventions.

  Running statistics move a tenth of the way to the batch's, whose variance is
  unbiased there and biased in the normalization itself.
  https://pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B F'], train: bool
  ) -> Float[Array, 'B F']:
    """Normalizes each feature by the batch (train) or the running values."""
    size, shape = x.shape[0], x.shape[1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    ones = nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,))
    scale = self.param('scale', ones, shape, jnp.float32)
    bias = self.param('bias', zeros, shape, jnp.float32)
    now, spread = mean.value, var.value
    if train:
      now, spread = x.mean(axis=0), x.var(axis=0)
      if self.is_mutable_collection('batch_stats'):
        unbiased = spread * (size / max(size - 1, 1))
        mean.value += 0.1 * (now - mean.value)
        var.value += 0.1 * (unbiased - var.value)
    return (x - now) / jnp.sqrt(spread + 1e-5) * scale + bias


class Head(nn.Module):
  """Classifier in float32: linear, or Linear, [BatchNorm], GELU, Linear.

  Attributes:
    initial_bias: of every logit; None leaves it to `init_kind`. Sigmoid losses
      start at rare classes with one well below 0 (arXiv:2006.07159).
  """

  kind: str  # 'linear', 'mlp' or 'mlp_bn' (the released code's)
  num_classes: int
  hidden: int  # units of the MLP heads
  init_kind: str
  precision: str
  initial_bias: float | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B D'], train: bool
  ) -> Float[Array, 'B C']:
    """Computes the logits of pooled tokens."""
    x = x.astype(jnp.float32)
    if self.kind != 'linear':
      names = (axes.EMBED, axes.MLP)
      x = self._linear('hidden', x, self.hidden, names, inits.kernel)
      x = BatchNorm(name='batch_norm')(x, train) if self.kind == 'mlp_bn' else x
      x = kernels.gelu(x)
    names = (axes.EMBED if self.kind == 'linear' else axes.MLP, axes.CLASSES)
    bias = None
    if self.initial_bias is not None:
      bias = nn.initializers.constant(self.initial_bias)
    return self._linear('logits', x, self.num_classes, names, inits.head, bias)

  def _linear(self, name, x, features, names, kernel_init, bias_init=None):
    kind, size = self.init_kind, x.shape[-1]
    kernel_init = kernel_init(kind, size)
    bias_init = bias_init or inits.bias(kind, size)
    fields = (size, features), names, 'float32', kernel_init, (features,)
    weights = layers.Projection(*fields, bias_init, name=name)()
    return kernels.linear(x, *weights, self.precision)
