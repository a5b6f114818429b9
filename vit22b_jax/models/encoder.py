"""Blocks one after another, unrolled or scanned, with what is kept of each."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit22b_jax.models import axes, backend, blocks, memory, stacking


class Encoder(blocks.Transformer, kw_only=True):
  """Fields and method of a model whose blocks all have its own width.

  Attributes beyond those of `blocks.Transformer`:
    form: 'sequential' or 'parallel' blocks.
    depth: number of blocks.
    stochastic_depth: chance of leaving out a branch of the last block, rising
      linearly from 0 at the first.
    remat: what the backward pass finds stored, a key of `memory.REMAT`.
    scan_layers: one traced block for all, with parameters [depth, ...] under
      `blocks`, in place of `depth` traced ones with `block_NN` each. Random
      numbers differ.
  """

  form: str
  depth: int
  stochastic_depth: float = 0.0
  remat: str = 'none'
  scan_layers: bool = False

  def encode(
    self, x: Float[Array, 'B L D'], train: bool, capture: bool
  ) -> tuple[Float[Array, 'B L D'], dict[str, Array]]:
    """Tokens after all blocks, and with `capture` statistics [depth, ...]."""
    if self.scan_layers:
      return self._scanned(x, train, capture)
    stats = []
    for i in range(self.depth):
      rate = self.stochastic_depth * i / max(self.depth - 1, 1)
      name = stacking.block_name(i, self.depth)
      block = self._block()(
        **self.shared_fields(), stochastic_depth=rate, name=name
      )
      x, seen = block(x, train, capture)
      stats.append(seen)
    if not capture:
      return x, {}
    return x, {key: jnp.stack([s[key] for s in stats]) for key in stats[0]}

  def _block(self) -> type[blocks.Block]:
    block = blocks.FORMS[self.form]
    if self.remat == 'none' and backend.on_cpu():
      return block  # no weights are gathered, so everything is kept
    return nn.remat(
      block,
      policy=memory.policy(self.remat),
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
