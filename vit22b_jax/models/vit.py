"""Vision transformers over either block: patches, encoder, head; and `build`.

The model is a linen module, used as any other:

    variables = model.init(key, images)
    logits = model.apply(variables, images)

    >>> import jax
    >>> model = build('vit22b', 'S', num_classes=100, patch_size=4)
    >>> images = jnp.zeros((2, 32, 32, 3))
    >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> sum(x.size for x in jax.tree.leaves(params))
    21345892
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax import errors, rules
from vit22b_jax.models import (
  axes,
  blocks,
  embeddings,
  heads,
  inits,
  kernels,
  layers,
  stacking,
)

PRESETS = blocks.PRESETS

# "Deeper Inside Deep ViT", Table 1: layers, width D, MLP size F, heads N.
VARIANTS = {
  'Ti': {'depth': 12, 'width': 192, 'mlp_dim': 768, 'num_heads': 3},
  'S': {'depth': 12, 'width': 384, 'mlp_dim': 1536, 'num_heads': 6},
  'B': {'depth': 12, 'width': 768, 'mlp_dim': 3072, 'num_heads': 12},
  'L': {'depth': 24, 'width': 1024, 'mlp_dim': 4096, 'num_heads': 16},
  'H': {'depth': 32, 'width': 1280, 'mlp_dim': 5120, 'num_heads': 16},
  '22B': {'depth': 48, 'width': 6144, 'mlp_dim': 24576, 'num_heads': 48},
}


class ViT(layers.Transformer, kw_only=True):
  """A classifier of images: patches, positions, blocks, pool, head."""

  form: str = 'parallel'  # or 'sequential' blocks
  depth: int  # number of blocks
  num_classes: int  # C; 0 for no head: features [B, D] in place of logits
  patch_size: int  # side of a patch in pixels
  final_norm: bool = True  # normalizes the last block's output
  head: str = 'linear'  # or 'mlp', 'mlp_bn'
  head_bias: float | None = None  # the logits' first bias, for `init_kind`'s
  pool: str = 'cls'  # a class token, 'mean' over patches or 'map' (attention)
  pos_embedding: str = 'learned'  # or 'sincos'
  # Chance to leave out a branch of the last block, rising from 0 at the first.
  stochastic_depth: float = 0.0
  remat: str = 'none'  # what stays stored for the backward pass: `remat.REMAT`
  # One traced block for all, with parameters [depth, ...] under `blocks`, in
  # place of `depth` ones with `block_NN` each. Random numbers differ.
  scan_layers: bool = False

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'B H W 3'],
    train: bool = False,
    capture: bool = False,
  ) -> Float[Array, 'B C'] | tuple[Float[Array, 'B C'], dict[str, Array]]:
    """Computes the float32 logits of normalized images.

    Training turns on dropout and stochastic depth (both draw from the key
    'dropout'), and lets batch norms use and update batch statistics.

    Returns:
      Logits (features without a head); with `capture` also a dict of
        attn_logit_max [depth]: largest logit of attention,
        attn_entropy [depth]: in nats, mean over images, heads and queries,
        residual_rms [depth]: root mean square of the stream after the block,
        attn_map [depth, B, N, L, L]: attention.

    Raises:
      UserError: when the image is not a whole number of patches.
    """
    p, (height, width) = self.patch_size, images.shape[1:3]
    if height % p or width % p:
      raise errors.UserError(
        f'images of {height} x {width} pixels do not divide into patches of '
        f'{p} x {p}: set data.image_size to a multiple of model.patch_size.'
      )
    x = self.embed_patches(images, p)
    if self.pool == 'cls':
      init = nn.with_logical_partitioning(
        inits.CLASS_TOKEN[self.init_kind], (axes.EMBED,)
      )
      cls = self.param('cls', init, (self.width,), jnp.float32)
      cls = jnp.broadcast_to(cls.astype(x.dtype), (len(x), 1, self.width))
      x = jnp.concatenate([cls, x], axis=1)
    positions = embeddings.Positions(
      self.pos_embedding, self.init_kind, name='positions'
    )
    x = positions(x, (height // p, width // p))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = nn.with_logical_constraint(x, (axes.BATCH, axes.TOKENS, None))
    x, out = self._encode(x, train, capture)
    x = x[:, :1] if self.pool == 'cls' else x
    x = self.make_norm('final_norm')(x) if self.final_norm else x
    if self.pool == 'map':
      x = heads.MapPool(**self.shared_fields(), name='map_pool')(x)
    else:
      x = x[:, 0] if self.pool == 'cls' else x.mean(axis=1)
    if self.num_classes:
      x = heads.Head(
        self.head,
        self.num_classes,
        self.mlp_dim,
        self.init_kind,
        self.precision,
        self.head_bias,
        name='head',
      )(x, train)
    x = x.astype(jnp.float32)
    return (x, out) if capture else x

  def _encode(
    self, x: Float[Array, 'B L D'], train: bool, capture: bool
  ) -> tuple[Float[Array, 'B L D'], dict[str, Array]]:
    """Applies all blocks; with `capture` returns statistics [depth, ...]."""
    if self.scan_layers:
      return self._scanned(x, train, capture)
    stats = []
    for i, name in enumerate(stacking.layer_names(self.depth)):
      rate = self.stochastic_depth * i / max(self.depth - 1, 1)
      fields = self.shared_fields() | {'stochastic_depth': rate}
      x, seen = self._block()(**fields, name=name)(x, train, capture)
      stats.append(seen)
    if not capture:
      return x, {}
    return x, {key: jnp.stack([s[key] for s in stats]) for key in stats[0]}

  def _block(self) -> type[blocks.Block]:
    block = blocks.FORMS[self.form]
    policy = kernels.checkpoint_policy(self.remat)
    if policy is None:
      return block
    return nn.remat(
      block,
      policy=policy,
      # A scan's backward loop can't reuse what the forward loop computed.
      prevent_cse=not self.scan_layers,
      static_argnums=(2, 3),
    )

  def _scanned(
    self, x: Float[Array, 'B L D'], train: bool, capture: bool
  ) -> tuple[Float[Array, 'B L D'], dict[str, Array]]:
    scanned = nn.scan(
      self._block(),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast, nn.broadcast, 0),
      length=self.depth,
      metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )
    rates = None
    if self.stochastic_depth:
      rates = jnp.linspace(0, self.stochastic_depth, self.depth)
    block = scanned(**self.shared_fields(), name=stacking.BLOCKS)
    return block(x, train, capture, rates)


def _validate(m: ViT) -> None:
  """Judges how a model's fields fit together."""
  parallel = m.form == 'parallel'
  cudnn = kernels.cudnn.supports(m.dtype, m.head_dim)
  for broken, message in (
    (
      not isinstance(m.num_classes, int) or m.num_classes < 0,
      f'num_classes={m.num_classes!r} must be a whole number of at least 0.',
    ),
    (
      m.width % m.num_heads,
      f'model.width={m.width} is not a multiple of model.num_heads='
      f'{m.num_heads}.',
    ),
    (
      parallel and m.mlp_dim % m.num_heads,
      f'model.mlp_dim={m.mlp_dim} is not a multiple of model.num_heads='
      f'{m.num_heads}: a parallel block groups its MLP by head.',
    ),
    (
      m.sum_norm and not parallel,
      'model.sum_norm=True normalizes the sum of two parallel branches, which '
      'a sequential block does not have: choose a parallel block, e.g. '
      "model.block='vit22b'.",
    ),
    (
      m.norm == 'rms' and m.norm_bias,
      "model.norm='rms' has no bias: set model.norm_bias=False.",
    ),
    (
      m.attention == 'cudnn' and not cudnn,
      f"model.attention='cudnn' takes {kernels.cudnn.RULE}, not {m.dtype} with "
      f"{m.head_dim}: set model.dtype='bfloat16', or leave it to 'auto'.",
    ),
  ):
    if broken:
      raise errors.UserError(message)
  if m.pos_embedding == 'sincos':
    embeddings.sincos_2d(1, 1, m.width)


def build(
  block: str = 'vit22b',
  variant: str = 'S',
  *,
  num_classes: int,
  patch_size: int,
  **overrides: Any,
) -> ViT:
  """Builds a classifier from the names of a block and of a size.

  Args:
    block: a key of `PRESETS`.
    variant: a key of `VARIANTS`.
    num_classes: C; 0 for a model without a head.
    patch_size: side of a patch in pixels.
    **overrides: any field of `ViT` but `form` and `fused_output`; `init` sets
      `init_kind`. None stands for the default, as does dtype='auto', which a
      task resolves for its devices.

  Raises:
    UserError: for unknown names and values, and for impossible combinations.
  """
  rules.validate_fields('model', {'block': block, 'variant': variant})
  fixed = {'form', 'fused_output', 'init_kind', 'name', 'parent'}
  known = {'init', *(f.name for f in dataclasses.fields(ViT))} - fixed
  for name in overrides:
    errors.validate_choice('model key', name, sorted(known))
  fields = {
    **PRESETS[block],
    **VARIANTS[variant],
    **{k: v for k, v in overrides.items() if v is not None},
    'num_classes': num_classes,
    'patch_size': patch_size,
  }
  rules.validate_fields('model', fields)
  if fields.get('dtype') == 'auto':
    fields['dtype'] = 'float32'
  model = ViT(init_kind=fields.pop('init', 'vit'), **fields)
  _validate(model)
  return model
