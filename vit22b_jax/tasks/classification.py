"""Trains and evaluates one image classifier.

task = Classification(config, mesh, names, data)
state = task.init_state()
with sharding.mesh_context(mesh):
  state, scalars = task.train_step(state, batch)
probabilities = task.evaluator.predict(variables, images)
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vit22b_jax import config as config_lib
from vit22b_jax import errors
from vit22b_jax.data import augment, catalog, files, loader, pipeline
from vit22b_jax.models import stacking, vit
from vit22b_jax.runtime import flops, sharding
from vit22b_jax.tasks import base, evaluators
from vit22b_jax.training import diagnostics, explain, gradients, losses
from vit22b_jax.weights import initial


@flax.struct.dataclass
class State(base.State):
  """Adds batch norm's statistics, {} without, and averaged weights, or None."""

  batch_stats: Any
  ema: Any


def build_model(config: ConfigDict, num_classes: int) -> vit.ViT:
  """Builds the classifier that the config's `model` section describes.

  Raises:
    UserError: as `vit.build`, and for cuDNN's attention with the penalty.
  """
  fields = dict(config.model)
  if config.loss.input_gradient_penalty:
    if fields['attention'] == 'cudnn':
      raise errors.UserError(
        "model.attention='cudnn' has no second derivative, which "
        f'loss.input_gradient_penalty={config.loss.input_gradient_penalty:g} '
        "needs: use 'auto' or 'xla'."
      )
    fields['attention'] = 'xla'
  return vit.build(num_classes=num_classes, **fields)


class Classification(base.Task):
  """Trains a classifier; `multi_label`: images may be of several classes."""

  def __init__(
    self,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    names: list[str],
    data: catalog.Dataset | None = None,
  ):
    if data and data.multi_label and config.loss.kind != 'sigmoid':
      raise errors.UserError(
        f'images may be of several classes here (labels.csv), and loss.kind='
        f"{config.loss.kind!r} takes one for each: use loss.kind='sigmoid'."
      )
    config_lib.resolve_dtype(config, mesh.devices.flat[0].platform)
    self.model = build_model(config, len(names))
    self.layers = stacking.layer_names(self.model.depth)
    self.multi_label = bool(data and data.multi_label)
    self._class_weights = None
    if config.loss.class_weights != 'none':
      # A plan's data are sizes alone.
      labels = getattr(data and data.train, 'labels', np.arange(len(names)))
      self._class_weights = losses.class_weights(
        config.loss.class_weights, labels, len(names)
      )
    self.scalars = diagnostics.scalar_names_of_blocks(
      self.layers,
      config.diagnostics.per_layer,
      ('train/precision_at_1' if self.multi_label else 'train/top1',),
    )
    super().__init__(config, mesh, names, data)
    sharding.validate_batch_size(
      self.images_at_once(config), mesh, 'batch_size / optim.accumulate'
    )
    self.evaluator = evaluators.ClassificationEvaluator(
      config, mesh, data, self.names, self._logits
    )

  # --- Data ----------------------------------------------------------------

  @staticmethod
  def validate_config(config: ConfigDict) -> None:
    size, patch = config.data.image_size, config.model.patch_size
    if (config.data.load_size or size) < size:
      raise errors.UserError(
        f'data.load_size={config.data.load_size} is smaller than '
        f'data.image_size={size}, which is cut out of it.'
      )
    if size % patch:
      raise errors.UserError(
        f'data.image_size={size} is not a multiple of model.patch_size={patch}.'
      )
    model = build_model(config, num_classes=2)
    if config.batch_size % config.optim.accumulate:
      raise errors.UserError(
        f'batch_size={config.batch_size} is not divisible by '
        f'optim.accumulate={config.optim.accumulate}.'
      )
    if config.optim.accumulate > 1 and model.head == 'mlp_bn':
      raise errors.UserError(
        f'optim.accumulate={config.optim.accumulate} with '
        "model.head='mlp_bn': batch norm's statistics are those of the whole "
        "batch, which accumulation never sees. Use 1, or model.head='mlp'."
      )
    frozen = config.init_from and config.optim.freeze == 'backbone'
    weights = epath.Path(config.init_from or '').expanduser()
    if frozen and model.pool == 'map' and files.is_file(weights):
      raise errors.UserError(
        "optim.freeze='backbone' with model.pool='map': files of weights have "
        "no such pool, so that it would stay as it is drawn. Use pool='mean' "
        "or 'cls', or train all weights."
      )
    if (config.data.sampling, config.loss.class_weights) == ('balanced',) * 2:
      raise errors.UserError(
        "data.sampling='balanced' and loss.class_weights='balanced' each make "
        'up for rare classes, so that both do it twice: choose one.'
      )

  @staticmethod
  def images_at_once(config: ConfigDict) -> int:
    return config.batch_size // config.optim.accumulate

  @staticmethod
  def load_data(config: ConfigDict) -> catalog.Dataset:
    """Loads the data set that the config's `data` section names."""
    data = config.data
    keys = ('name', 'dir', 'val_fraction', 'cache_max_gb', 'max_corrupt')
    return loader.load_classes(
      image_size=data.load_size or data.image_size,
      seed=base.split_seed(config),
      **{key: data[key] for key in keys},
    )

  @staticmethod
  def dataset_info(config: ConfigDict) -> catalog.Dataset:
    data = config.data
    return catalog.count_classes(
      data.name, dir=data.dir, val_fraction=data.val_fraction
    )

  def count_steps_per_epoch(self) -> int:
    """Counts the whole batches in the training part."""
    return pipeline.steps_per_epoch(self.data.train, self.config.batch_size)

  def host_batches(self, **options: Any) -> pipeline.Batches:
    sampling = self.config.data.sampling
    return pipeline.train_iterator(
      self.data.train, sampling=sampling, **options
    )

  @property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    count, data = self.config.batch_size, self.config.data
    side = data.load_size or data.image_size
    images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32)
    if self.multi_label:
      labels = jax.ShapeDtypeStruct((count, len(self.names)), jnp.float32)
    placed = sharding.batch_sharding(self.mesh)
    batch = {'image': images, 'label': labels}
    return {name: base.abstract(x, placed) for name, x in batch.items()}

  @property
  def flops_per_image(self) -> float:
    work = flops.classifier_flops(self.model, self.config.data.image_size)
    return work / 3 if self.config.optim.freeze == 'backbone' else work

  # --- State ---------------------------------------------------------------

  def init_variables(self, seed: int) -> dict[str, Any]:
    key, _ = jax.random.split(jax.random.key(seed))
    size = self.config.data.image_size
    return self.model.init(key, jnp.zeros((1, size, size, 3)))

  def new_state(self, variables: dict[str, Any], seed: int) -> State:
    _, key = jax.random.split(jax.random.key(seed))
    params = variables['params']
    return State(
      **self.common_state(params, key),
      batch_stats=variables.get('batch_stats', {}),
      opt_state=self.tx.init(params),
      ema=jax.tree.map(jnp.copy, params) if self.config.optim.ema else None,
    )

  def shardings(self, shapes: State) -> dict[str, Any]:
    """Splits moments and averages as the weights are split."""
    params = self.param_shardings
    opt_state = sharding.opt_state_shardings(
      self.tx, shapes.opt_state, params, self.mesh
    )
    ema = None if shapes.ema is None else params
    return {'ema': ema, 'opt_state': opt_state}

  def with_pretrained(
    self, state: State, path: str, step: int | None = None
  ) -> State:
    """Returns the state with the weights of a file or of another run."""
    weights = {'params': state.params, 'batch_stats': state.batch_stats}
    size = self.config.data.image_size
    found = initial.load(path, self.model, weights, self.names, size, step)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, found['params'])
    return state.replace(ema=ema, **found)

  @property
  def abstract_weights(self) -> dict[str, Any]:
    whole = sharding.replicated(self.mesh)
    batch_stats = nn.unbox(self.variable_shapes).get('batch_stats', {})
    kind = 'ema' if self.config.optim.ema else 'params'
    return {
      kind: self.abstract_params,
      'batch_stats': jax.tree.map(
        lambda x: base.abstract(x, whole), batch_stats
      ),
    }

  def variables(self, weights: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns what the model applies: averaged weights where there are any."""
    kind = 'params' if weights.get('ema') is None else 'ema'
    batch_stats = weights['batch_stats']
    return {'params': weights[kind], 'batch_stats': batch_stats}, kind

  # --- Steps ---------------------------------------------------------------

  def step(
    self, state: State, batch: dict[str, Array]
  ) -> tuple[State, Float[Array, 'M']]:
    """Takes a step on `image` uint8 [B, H, W, 3] and their `label`. Traced."""
    config = self.config
    found = gradients.of_batch(
      self.loss,
      state.params,
      state.batch_stats,
      self._parts(state, batch),
      config.optim.accumulate,
      state.loss_scale,
      self.param_shardings,
    )
    updates, opt_state = self.tx.update(
      found.grads, state.opt_state, state.params
    )
    params = jax.tree.map(jnp.add, state.params, updates)
    # Less at first, or short runs would keep much of their random beginning; as
    # num_updates does in TensorFlow's ExponentialMovingAverage.
    decay = jnp.minimum(config.optim.ema, (1 + state.step) / (10 + state.step))
    ema = state.ema and jax.tree.map(
      lambda e, p: decay * e + (1 - decay) * p, state.ema, params
    )
    row = diagnostics.measure(
      loss=found.loss,
      max_logit=found.aux.pop('max_logit'),
      max_abs_logit=found.aux.pop('max_abs_logit'),
      grads=found.grads,
      updates=updates,
      params=state.params,
      clip_norm=config.optim.clip_norm,
    )
    row |= diagnostics.layer_norms(found.grads) | found.aux
    new = {'params': params, 'opt_state': opt_state, 'ema': ema}
    new['batch_stats'] = found.batch_stats
    return self.finish_step(state, row, found.overflow, found.loss_scale, **new)

  def _parts(self, state: State, batch: dict[str, Array]) -> Any:
    """Augments, normalizes and splits a batch; see `gradients.split`."""
    augment_key, key = jax.random.split(self.step_key(state))
    data = self.config.data
    images, labels = augment.train_images(
      augment_key,
      batch['image'],
      batch['label'],
      augment.recipe(data),
      mean=data.mean,
      std=data.std,
      num_classes=len(self.names),
    )
    return gradients.split(images, labels, key, self.config.optim.accumulate)

  def loss(
    self, params: Any, batch_stats: Any, part: Any
  ) -> tuple[Float[Array, ''], tuple[Any, dict[str, Array]]]:
    """Computes the mean loss of a part of a batch, see `gradients.split`.

    Returns:
      The loss; and new batch statistics, with scalars by name.
    """
    images, labels, key = part
    if self.config.optim.freeze == 'backbone':
      params = {**jax.lax.stop_gradient(params), 'head': params['head']}
    settings = self.config.loss
    per_layer = self.config.diagnostics.per_layer

    def example_losses(images):
      output, updated = self._apply(params, batch_stats, images, key, per_layer)
      logits, captured = output if per_layer else (output, {})
      smoothing = settings.label_smoothing
      values = losses.cross_entropy(
        logits, labels, kind=settings.kind, label_smoothing=smoothing
      )
      if self._class_weights is not None:
        values *= losses.example_weights(labels, self._class_weights)
      return values, (logits, captured, updated.get('batch_stats', {}))

    values, (logits, captured, batch_stats) = losses.penalized(
      example_losses, images, settings.input_gradient_penalty
    )
    aux = diagnostics.layer_columns(captured, self.layers)
    aux['max_logit'] = jnp.max(logits)
    aux['max_abs_logit'] = jnp.max(jnp.abs(logits))
    first = jnp.argmax(logits, -1)
    if self.multi_label:
      own = jax.nn.one_hot(first, len(self.names))
      aux['train/precision_at_1'] = jnp.mean(jnp.sum(own * labels, -1) > 0)
    else:
      likeliest = labels if labels.ndim == 1 else jnp.argmax(labels, -1)
      aux['train/top1'] = jnp.mean(first == likeliest)
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

  def locate_nonfinite(self, state: State, batch: dict[str, Array]) -> str:
    """Finds which layer of the step on `batch` is non-finite first."""
    count = self.config.optim.accumulate
    scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

    @jax.jit
    def passes(state, batch, index):
      part = self._parts(state, batch)
      if count > 1:
        part = jax.tree.map(lambda x: x[index], part)

      def scaled(params):
        return scale * self.loss(params, state.batch_stats, part)[0]

      (_, captured), _ = self._apply(
        state.params, state.batch_stats, part[0], part[2], True
      )
      captured.pop('attn_map')
      return captured, diagnostics.layer_norms(jax.grad(scaled)(state.params))

    for index in range(count):
      with sharding.mesh_context(self.mesh):
        captured, norms = jax.device_get(passes(state, batch, index))
      if found := explain.first_nonfinite(captured, norms, self.layers):
        return found
    return 'the head or the loss, after the last block'

  def _logits(
    self, variables: Any, images: Array, capture: bool = False
  ) -> Any:
    """Applies the model to raw uint8 images of `load_size` or `image_size`."""
    data = self.config.data
    if data.load_size or data.eval_crop:
      images = augment.eval_images(images, data.image_size, data.eval_crop)
    images = augment.normalize(images, data.mean, data.std)
    return self.model.apply(variables, images, capture=capture)
