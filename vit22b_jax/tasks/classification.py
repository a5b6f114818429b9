"""Training and evaluating one image classifier.

    task = Classification(config, mesh, class_names, data)
    state = task.init()                      # sharded over the mesh
    state, scalars = task.train_step(state, batch)   # jitted, state donated
    result = task.evaluate(state, data.test)

Everything random or heavy (augmentation, model, loss, gradients, optimiser,
diagnostics) happens inside one jitted step. The step returns its scalars as one
vector, so that reading them costs a single transfer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.training import dynamic_scale
from jaxtyping import Array, Float, Int, UInt8, UInt32

from vit22b_jax import (
  diagnostics,
  durations,
  errors,
  flops,
  losses,
  metrics,
  optim,
  sharding,
  weights,
)
from vit22b_jax.data import pipeline, sources, splits, transforms
from vit22b_jax.models import vit


@flax.struct.dataclass
class State:
  """Everything that a step changes.

  Attributes:
    step: steps done.
    params: the weights, float32.
    batch_stats: batch norm's running statistics; {} without batch norm.
    opt_state: optax's state.
    ema: exponential moving average of `params`; None when it's off.
    key: raw random key of the run; a step folds its number in.
    loss_scale: dynamic loss scale for float16; None otherwise.
    monitor: the explosion detector's memory.
  """

  step: Int[Array, '']
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any
  key: UInt32[Array, '2']
  loss_scale: dynamic_scale.DynamicScale | None
  monitor: diagnostics.Monitor


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What a model does on a split.

  Attributes:
    values: `num_examples loss top1 top5 auroc`; accuracies in [0, 1].
    probabilities: softmax outputs, float32.
    labels: the true classes, in the same order.
    indices: the images' places in the split; those that can't be read are
      missing.
  """

  values: dict[str, float]
  probabilities: Float[np.ndarray, 'n C']
  labels: Int[np.ndarray, ' n']
  indices: Int[np.ndarray, ' n']


def build_model(config: Any, num_classes: int) -> vit.ViT:
  """The classifier that the config's `model` section describes."""
  fields = dict(config.model)
  return vit.build(
    fields.pop('block'),
    fields.pop('variant'),
    num_classes=num_classes,
    **fields,
  )


class Classification:
  """One classifier on one mesh.

  Args:
    config: the run's configuration.
    mesh: where arrays live.
    class_names: the names of the classes, in label order.
    data: the splits to train and evaluate on; None to only predict.

  Raises:
    UserError: sizes that don't fit together.
  """

  best_metric = 'val/top1'
  best_mode = 'max'
  # Scalars of a step whose means go into metrics.jsonl, beside the loss.
  logged = ('train/top1',)

  def __init__(
    self,
    config: Any,
    mesh: jax.sharding.Mesh,
    class_names: list[str],
    data: sources.Dataset | None = None,
  ):
    self.config = config
    self.mesh = mesh
    self.class_names = list(class_names)
    self.data = data
    self.model = build_model(config, len(class_names))
    self._eval_batch_size = config.eval.batch_size or config.batch_size
    sharding.check_batch(config.batch_size, mesh)
    sharding.check_batch(self._eval_batch_size, mesh, 'eval.batch_size')
    micro = config.batch_size // config.optim.accumulate
    if micro * config.optim.accumulate != config.batch_size:
      raise errors.UserError(
        f'batch_size={config.batch_size} is not divisible by '
        f'optim.accumulate={config.optim.accumulate}.'
      )
    sharding.check_batch(micro, mesh, 'batch_size / optim.accumulate')
    if config.optim.accumulate > 1 and self.model.head == 'mlp_bn':
      raise errors.UserError(
        f'optim.accumulate={config.optim.accumulate} with '
        "model.head='mlp_bn': batch norm's statistics are those of the whole "
        "batch, which accumulation never sees. Use 1, or model.head='mlp'."
      )
    if data is not None:
      self._plan_training()
    with sharding.use(mesh):
      boxed = jax.eval_shape(self._variables, jax.random.key(0))
    self._boxed = boxed
    self.layers = sorted(k for k in boxed['params'] if k.startswith('block_'))

  @staticmethod
  def check(config: Any) -> None:
    """Judges the model and `init_from` before any data are read.

    Raises:
      UserError: sizes that don't fit together, or a missing file.
    """
    build_model(config, num_classes=2)
    if config.init_from and not epath.Path(config.init_from).is_file():
      raise errors.UserError(
        f'init_from={config.init_from}: there is no such file of weights.'
      )

  def _plan_training(self) -> None:
    config = self.config
    self.steps_per_epoch = pipeline.steps_per_epoch(
      self.data.train, config.batch_size
    )
    self.total_steps = self.steps(config.duration, whole=True)
    self.tx, self._schedule = optim.make(
      config.optim,
      total_steps=self.total_steps,
      steps_per_epoch=self.steps_per_epoch,
    )
    d = config.diagnostics
    self._settings = diagnostics.Settings(
      max_logit=d.max_logit,
      max_abs_grad=d.max_abs_grad,
      zscore=d.zscore,
      window=d.window,
      warmup_steps=self.steps(d.ignore),
      policy=d.on_explosion,
    )

  @property
  def flops_per_image(self) -> float:
    """Model FLOPs of a training step for one image; see `flops`."""
    model = self.model
    side = self.config.data.image_size // model.patch_size
    return flops.training_flops(
      depth=model.depth,
      width=model.width,
      mlp_dim=model.mlp_dim,
      tokens=side**2 + (model.pool == 'cls'),
    )

  def steps(self, duration: int | str, *, whole: bool = False) -> int:
    """A duration of the config in steps; `whole` for the run's own length."""
    return durations.steps(
      duration,
      steps_per_epoch=self.steps_per_epoch,
      total_steps=None if whole else self.total_steps,
    )

  # --- State ---------------------------------------------------------------

  def _variables(self, key: jax.Array) -> Any:
    size = self.config.data.image_size
    return self.model.init(key, jnp.zeros((1, size, size, 3)))

  def _fresh(self, seed: int) -> State:
    init_key, step_key = jax.random.split(jax.random.key(seed))
    variables = nn.unbox(self._variables(init_key))
    params = variables['params']
    config = self.config
    return State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get('batch_stats', {}),
      opt_state=self.tx.init(params),
      ema=jax.tree.map(jnp.copy, params) if config.optim.ema else None,
      key=jax.random.key_data(step_key),
      loss_scale=_loss_scale(config.model.dtype),
      monitor=diagnostics.init(
        config.diagnostics.window, len(self.signal_names)
      ),
    )

  @functools.cached_property
  def abstract_state(self) -> State:
    """Shapes, types and shardings of the state, with nothing computed."""
    with sharding.use(self.mesh):
      shapes = jax.eval_shape(functools.partial(self._fresh, 0))
    params = sharding.of_boxed(self._boxed['params'], self.mesh)
    placed = jax.tree.map(lambda _: sharding.replicated(self.mesh), shapes)
    placed = placed.replace(
      params=params,
      ema=params if shapes.ema is not None else None,
      opt_state=sharding.of_optimizer(
        self.tx, shapes.opt_state, params, self.mesh
      ),
    )
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      placed,
    )

  def init(self) -> State:
    """A new state from the config's seed, each array made where it lives."""
    placed = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    with sharding.use(self.mesh):
      return jax.jit(self._fresh, static_argnums=0, out_shardings=placed)(
        self.config.seed
      )

  def with_pretrained(self, state: State, path: str) -> State:
    """The state with weights from a file; see `weights.load_pretrained`."""
    params = weights.load_pretrained(
      path,
      self.model,
      jax.device_get(state.params),
      self.config.data.image_size,
    )
    placed = jax.tree.map(
      lambda new, old: jax.device_put(
        jnp.asarray(new, old.dtype), old.sharding
      ),
      params,
      state.params,
    )
    ema = None if state.ema is None else jax.tree.map(jnp.copy, placed)
    return state.replace(params=placed, ema=ema)

  # --- Training ------------------------------------------------------------

  @property
  def signal_names(self) -> list[str]:
    """What the detector remembers of each step, in order."""
    ids = [name.removeprefix('block_') for name in self.layers]
    quantities = ['grad_norm']
    if self.config.diagnostics.per_layer:
      quantities += ['attn_logit_max', 'residual_rms']
    layered = [f'{q}/{i}' for q in quantities for i in ids]
    return [*diagnostics.JUDGED, *layered]

  @property
  def diagnostic_names(self) -> list[str]:
    """The columns of diagnostics.csv after `step`."""
    names = list(diagnostics.COLUMNS)
    if self.config.diagnostics.per_layer:
      for quantity in (*diagnostics.CAPTURED, 'grad_norm'):
        names += [f'{quantity}/{x.removeprefix("block_")}' for x in self.layers]
    return names

  @property
  def scalar_names(self) -> list[str]:
    """Names of the entries of the vector that `train_step` returns."""
    names = self.diagnostic_names
    return [
      *names,
      *(name for name in self.signal_names if name not in names),
      'train/top1',
      'train/learning_rate',
      *diagnostics.VERDICT,
    ]

  def train_iterator(self) -> pipeline.DeviceIterator:
    """Endless training batches on the devices, from the first one on."""
    return pipeline.DeviceIterator(
      pipeline.train_iterator(
        self.data.train,
        batch_size=self.config.batch_size // jax.process_count(),
        seed=self.config.seed,
        workers=self.config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      ),
      sharding.batch(self.mesh),
    )

  @functools.cached_property
  def train_step(self):
    """Jitted (state, batch) -> (state, scalars [M]); the state is donated.

    `batch` holds `image` uint8 [B, H, W, 3] and `label` int32 [B]; `scalars`
    are float32 in the order of `scalar_names`.
    """
    placed = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    return self._in_mesh(
      jax.jit(
        self._train_step,
        donate_argnums=0,
        in_shardings=(placed, sharding.batch(self.mesh)),
        out_shardings=(placed, sharding.replicated(self.mesh)),
      )
    )

  def _train_step(
    self, state: State, batch: dict[str, Array]
  ) -> tuple[State, Float[Array, 'M']]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    augment_key, dropout_key = jax.random.split(key)
    images = self._images(batch['image'], augment_key)
    gradients = self._gradients(state, images, batch['label'], dropout_key)
    grads, loss, batch_stats, aux, loss_scale, overflow = gradients

    updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + u, state.params, updates)
    row = diagnostics.measure(
      loss=loss,
      max_logit=aux['max_logit'],
      grads=grads,
      updates=updates,
      params=state.params,
      clip_norm=self.config.optim.clip_norm,
    )
    row |= diagnostics.layer_norms(grads)
    row |= {k: v for k, v in aux.items() if '/' in k}
    signals = jnp.stack([row[name] for name in self.signal_names])
    monitor, verdict = diagnostics.observe(
      state.monitor, signals, loss, state.step, overflow, self._settings
    )
    decay = self.config.optim.ema
    ema = state.ema and jax.tree.map(
      lambda e, p: decay * e + (1 - decay) * p, state.ema, params
    )

    def unless_kept(new, old):
      return jax.tree.map(lambda n, o: jnp.where(verdict.keep, o, n), new, old)

    row['train/top1'] = aux['top1']
    row['train/learning_rate'] = self._schedule(
      optim.steps_taken(state.opt_state)
    )
    row |= diagnostics.verdict_row(verdict, monitor)
    state = state.replace(
      step=state.step + jnp.where(monitor.stopped, 0, 1),
      params=unless_kept(params, state.params),
      batch_stats=unless_kept(batch_stats, state.batch_stats),
      opt_state=unless_kept(opt_state, state.opt_state),
      ema=unless_kept(ema, state.ema),
      loss_scale=jax.tree.map(
        lambda n, o: jnp.where(monitor.stopped, o, n),
        loss_scale,
        state.loss_scale,
      ),
      monitor=monitor,
    )
    return state, jnp.stack([row[name] for name in self.scalar_names])

  def _images(
    self, images: UInt8[Array, 'B H W 3'], key: jax.Array | None = None
  ) -> Float[Array, 'B H W 3']:
    data = self.config.data
    if key is not None:
      images = transforms.augment(key, images, data.augment)
    return transforms.normalise(images, data.mean, data.std)

  def _gradients(self, state, images, labels, key):
    """Mean gradients over the micro-batches, and what came with them."""
    count = self.config.optim.accumulate
    scale = state.loss_scale

    def one(carry, micro):
      batch_stats, scale, grads, loss, finite = carry
      images, labels, key = micro
      loss_fn = functools.partial(
        self._loss,
        batch_stats=batch_stats,
        images=images,
        labels=labels,
        key=key,
      )
      if scale is None:
        (value, (batch_stats, aux)), new = jax.value_and_grad(
          loss_fn, has_aux=True
        )(state.params)
      else:
        scale, ok, (value, (batch_stats, aux)), new = scale.value_and_grad(
          loss_fn, has_aux=True
        )(state.params)
        finite &= ok
      grads = new if grads is None else jax.tree.map(jnp.add, grads, new)
      return (batch_stats, scale, grads, loss + value, finite), aux

    carry = (state.batch_stats, scale, None, 0.0, jnp.asarray(True))
    if count == 1:
      carry, aux = one(carry, (images, labels, key))
    else:
      zeros = jax.tree.map(jnp.zeros_like, state.params)
      carry = (state.batch_stats, scale, zeros, 0.0, jnp.asarray(True))
      micros = _micro_batches(images, labels, key, count)
      carry, aux = jax.lax.scan(one, carry, micros)
      aux = {
        k: v.mean(0) if k == 'top1' or 'entropy' in k else v.max(0)
        for k, v in aux.items()
      }
    batch_stats, scale, grads, loss, finite = carry
    grads = jax.tree.map(lambda g: g / count, grads)
    loss = loss / count
    return grads, loss, batch_stats, aux, scale, ~finite & jnp.isfinite(loss)

  def _loss(self, params, *, batch_stats, images, labels, key):
    """Mean loss of a batch; aux: new batch statistics, and scalars by name."""
    settings = self.config.loss
    per_layer = self.config.diagnostics.per_layer

    def example_losses(images):
      output, updated = self.model.apply(
        {'params': params, 'batch_stats': batch_stats},
        images,
        train=True,
        capture=per_layer,
        rngs={'dropout': key},
        mutable=['batch_stats'],
      )
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

  def locate_nonfinite(self, state: State, batch: dict[str, Array]) -> str:
    """Which layer of the step on `batch` is non-finite first.

    The step's own forward and backward pass are run again, with intermediates.
    """

    count = self.config.optim.accumulate
    scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

    def passes(state, batch, index):
      key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
      augment_key, key = jax.random.split(key)
      images = self._images(batch['image'], augment_key)
      labels = batch['label']
      if count > 1:
        micros = _micro_batches(images, labels, key, count)
        images, labels, key = jax.tree.map(lambda x: x[index], micros)

      def loss_fn(params):
        loss, _ = self._loss(
          params,
          batch_stats=state.batch_stats,
          images=images,
          labels=labels,
          key=key,
        )
        return scale * loss

      _, captured = self.model.apply(
        {'params': state.params, 'batch_stats': state.batch_stats},
        images,
        train=True,
        capture=True,
        rngs={'dropout': key},
        mutable=['batch_stats'],
      )[0]
      captured.pop('attn_map')
      return captured, diagnostics.layer_norms(jax.grad(loss_fn)(state.params))

    passes = self._in_mesh(jax.jit(passes))
    for index in range(count):
      captured, norms = jax.device_get(passes(state, batch, index))
      found = diagnostics.first_nonfinite(captured, norms, self.layers)
      if found:
        return found
    return 'the head or the loss, after the last block'

  # --- Evaluation ----------------------------------------------------------

  @functools.cached_property
  def abstract_weights(self) -> dict[str, Any]:
    """The part of a state that `variables` needs; made without any data."""
    shapes = nn.unbox(self._boxed)
    params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes['params'],
      sharding.of_boxed(self._boxed['params'], self.mesh),
    )
    whole = sharding.replicated(self.mesh)
    batch_stats = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      shapes.get('batch_stats', {}),
    )
    ema = params if self.config.optim.ema else None
    return {'params': params, 'batch_stats': batch_stats, 'ema': ema}

  def variables(self, weights: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What the model applies: averaged weights where there are any.

    Args:
      weights: `params`, `batch_stats` and `ema`, as a state has them.

    Returns:
      The model's variables, and which weights they are: 'ema' or 'params'.
    """
    kind = 'params' if weights['ema'] is None else 'ema'
    chosen = weights[kind]
    return {'params': chosen, 'batch_stats': weights['batch_stats']}, kind

  @functools.cached_property
  def predict(self):
    """Jitted (variables, images uint8 [B, H, W, 3]) -> probabilities [B, C]."""

    def apply(variables, images):
      return jax.nn.softmax(self._logits(variables, images))

    return self._in_mesh(
      jax.jit(apply, out_shardings=sharding.replicated(self.mesh))
    )

  @functools.cached_property
  def _eval_step(self):
    """Jitted (variables, batch) -> metric sums, and what the rest is made of.

    The rest: probabilities, labels, indices, mask.
    """

    def apply(variables, batch):
      logits = self._logits(variables, batch['image'])
      values = losses.cross_entropy(
        logits, batch['label'], kind=self.config.loss.kind
      )
      sums = metrics.batch_sums(logits, batch['label'], values, batch['mask'])
      rest = (batch[name] for name in ('label', 'index', 'mask'))
      return sums, jax.nn.softmax(logits), *rest

    return self._in_mesh(
      jax.jit(apply, out_shardings=sharding.replicated(self.mesh))
    )

  def _logits(self, variables, images):
    return self.model.apply(variables, self._images(images), train=False)

  def _in_mesh(self, function):
    @functools.wraps(function)
    def call(*args):
      with sharding.use(self.mesh):
        return function(*args)

    return call

  def evaluate(
    self,
    variables: dict[str, Any],
    split: splits.Split,
    check: Callable[[], None] = lambda: None,
  ) -> Evaluation:
    """Loss, top-1, top-5 and AUROC over every image of a split, once.

    Args:
      variables: the model's, as `variables` gives them.
      split: the images.
      check: called between batches; may raise to leave the evaluation.
    """
    batches = pipeline.eval_batches(
      split,
      batch_size=self._eval_batch_size // jax.process_count(),
      workers=self.config.data.workers,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    total, kept = None, []
    for batch in batches:
      check()
      placed = pipeline.place(batch, sharding.batch(self.mesh))
      sums, *rest = jax.device_get(self._eval_step(variables, placed))
      total = sums if total is None else metrics.merge(total, sums)
      *rest, mask = rest
      kept.append([array[mask > 0] for array in rest])
    probabilities, labels, indices = map(
      np.concatenate, zip(*kept, strict=True)
    )
    values = metrics.means(total)
    values['auroc'] = metrics.auroc(probabilities, labels)
    return Evaluation(values, probabilities, labels, indices)


def _micro_batches(images, labels, key, count):
  """Splits a batch in `count`: (images, labels, keys), each [count, ...].

  Every count-th image goes together, so that devices keep the images they have.
  """
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0),
    (images, labels),
  )
  return *parts, jax.random.split(key, count)


def _loss_scale(dtype: str) -> dynamic_scale.DynamicScale | None:
  """A dynamic loss scale for float16 (Micikevicius et al. 2018)."""
  if dtype != 'float16':
    return None
  return dynamic_scale.DynamicScale(
    fin_steps=jnp.zeros((), jnp.int32), scale=jnp.float32(2.0**16)
  )
