"""What a classifier minimises: images -> parts of a batch -> logits -> loss.

    parts = objective.parts(state, batch)            # augmented, normalised
    loss, (batch_stats, aux) = objective.loss(params, batch_stats, part)
    objective.locate_nonfinite(state, batch)         # where it breaks

All but the last are traced by the training step or the evaluation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vit22b_jax.data import augment
from vit22b_jax.models import vit
from vit22b_jax.training import diagnostics, gradients, losses


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss of one classifier.

  Attributes:
    config: the run's configuration.
    model: the classifier.
    layers: names of its blocks, in order.
  """

  config: Any
  model: vit.ViT
  layers: list[str]

  def images(
    self, images: UInt8[Array, 'B H W 3'], key: jax.Array | None = None
  ) -> Float[Array, 'B H W 3']:
    """Images as the model takes them; augmented if there is a key."""
    data = self.config.data
    if key is not None:
      images = augment.apply(key, images, data.augment)
    return augment.normalize(images, data.mean, data.std)

  def logits(
    self, variables: dict[str, Any], images: UInt8[Array, 'B H W 3']
  ) -> Float[Array, 'B C']:
    """What the model says of images as they are stored."""
    return self.model.apply(variables, self.images(images), train=False)

  def parts(self, state: Any, batch: dict[str, Array]) -> Any:
    """(images, labels, key) of a batch; `gradients.parts` of several.

    Args:
      state: before the step; gives the random key.
      batch: `image` uint8 [B, H, W, 3] and `label` int32 [B].
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    augment_key, key = jax.random.split(key)
    images = self.images(batch['image'], augment_key)
    count = self.config.optim.accumulate
    if count == 1:
      return images, batch['label'], key
    return gradients.parts(images, batch['label'], key, count)

  def loss(
    self, params: Any, batch_stats: Any, part: Any
  ) -> tuple[Float[Array, ''], tuple[Any, dict[str, Array]]]:
    """Mean loss of images; aux: new batch statistics, and scalars by name."""
    images, labels, key = part
    settings = self.config.loss
    per_layer = self.config.diagnostics.per_layer

    def example_losses(images):
      output, updated = self._apply(params, batch_stats, images, key, per_layer)
      logits, captured = output if per_layer else (output, {})
      values = losses.cross_entropy(
        logits,
        labels,
        kind=settings.kind,
        label_smoothing=settings.label_smoothing,
      )
      return values, (logits, captured, updated.get('batch_stats', {}))

    values, (logits, captured, batch_stats) = losses.penalised(
      example_losses, images, settings.input_gradient_penalty
    )
    aux = diagnostics.layer_columns(captured, self.layers)
    aux['max_logit'] = jnp.max(logits)
    aux['top1'] = jnp.mean(jnp.argmax(logits, -1) == labels)
    return jnp.mean(values), (batch_stats, aux)

  def _apply(self, params, batch_stats, images, key, capture):
    return self.model.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      train=True,
      capture=capture,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )

  def locate_nonfinite(self, state: Any, batch: dict[str, Array]) -> str:
    """Which layer of the step on `batch` is non-finite first.

    The step's own forward and backward pass are run again, with intermediates.
    """
    count = self.config.optim.accumulate
    scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

    @jax.jit
    def passes(state, batch, index):
      part = self.parts(state, batch)
      if count > 1:
        part = jax.tree.map(lambda x: x[index], part)
      images, _, key = part

      def scaled(params):
        return scale * self.loss(params, state.batch_stats, part)[0]

      (_, captured), _ = self._apply(
        state.params, state.batch_stats, images, key, True
      )
      captured.pop('attn_map')
      return captured, diagnostics.layer_norms(jax.grad(scaled)(state.params))

    for index in range(count):
      captured, norms = jax.device_get(passes(state, batch, index))
      found = diagnostics.first_nonfinite(captured, norms, self.layers)
      if found:
        return found
    return 'the head or the loss, after the last block'
