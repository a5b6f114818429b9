"""Training and evaluating one image classifier.

    task = Classification(config, mesh, names, data)
    state = task.init()                              # sharded over the mesh
    state, scalars = task.train_step(state, batch)   # jitted, state donated
    result = task.evaluate(variables, data.test)

Everything random or heavy (augmentation, model, loss, gradients, optimiser,
diagnostics) happens inside one jitted step.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.data import (
  catalog,
  dataset_info,
  devices,
  loader,
  pipeline,
  splits,
)
from vit22b_jax.models import stacking, vit
from vit22b_jax.runtime import flops, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base, objective, scoring
from vit22b_jax.training import diagnostics, gradients, optim
from vit22b_jax.weights import pretrained


@flax.struct.dataclass
class State(base.State):
  """Everything that a step changes.

  Attributes:
    params: the weights, float32.
    batch_stats: batch norm's running statistics; {} without batch norm.
    opt_state: optax's state.
    ema: exponential moving average of `params`; None when it's off.
  """

  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any


def build_model(config: Any, num_classes: int) -> vit.ViT:
  """The classifier that the config's `model` section describes."""
  fields = dict(config.model)
  return vit.build(
    fields.pop('block'),
    fields.pop('variant'),
    num_classes=num_classes,
    **fields,
  )


class Classification(base.Task):
  """One classifier on one mesh.

  Args:
    config: the run's configuration.
    mesh: where arrays live.
    names: of the classes, in label order.
    data: the splits to train and evaluate on, or `facts` to plan; None to only
      predict.

  Raises:
    UserError: sizes that don't fit together.
  """

  best_metric = 'val/top1'
  best_mode = 'max'
  names_are = 'classes'
  logged = ('train/top1',)

  def __init__(
    self,
    config: Any,
    mesh: jax.sharding.Mesh,
    names: list[str],
    data: catalog.Dataset | None = None,
  ):
    super().__init__(config, mesh, names, data)
    self.model = build_model(config, len(names))
    micro = config.batch_size // config.optim.accumulate
    if micro * config.optim.accumulate != config.batch_size:
      raise errors.UserError(
        f'batch_size={config.batch_size} is not divisible by '
        f'optim.accumulate={config.optim.accumulate}.'
      )
    sharding.validate_batch_size(micro, mesh, 'batch_size / optim.accumulate')
    if config.optim.accumulate > 1 and self.model.head == 'mlp_bn':
      raise errors.UserError(
        f'optim.accumulate={config.optim.accumulate} with '
        "model.head='mlp_bn': batch norm's statistics are those of the whole "
        "batch, which accumulation never sees. Use 1, or model.head='mlp'."
      )
    if data is not None:
      self.tx, self._schedule = optim.make(
        config.optim,
        total_steps=self.total_steps,
        steps_per_epoch=self.steps_per_epoch,
      )
    with sharding.mesh_context(mesh):
      self._boxed = jax.eval_shape(lambda: self._variables(jax.random.key(0)))
    self.layers = stacking.layer_names(self.model.depth)
    self.objective = objective.Objective(config, self.model, self.layers)

  @staticmethod
  def check(config: Any) -> None:
    """Judges the model, the images and `init_from` before data are read.

    Raises:
      UserError: sizes that don't fit together, or a missing file.
    """
    data, patch = config.data, config.model.patch_size
    for name, value in (('mean', data.mean), ('std', data.std)):
      if len(value) != 3:
        raise errors.UserError(
          f'data.{name}={value} must have three numbers, for red, green and '
          'blue.'
        )
    if min(data.std) <= 0:
      raise errors.UserError(f'data.std={data.std} must be above 0.')
    if data.image_size % patch:
      raise errors.UserError(
        f'data.image_size={data.image_size} is not a multiple of '
        f'model.patch_size={patch}.'
      )
    build_model(config, num_classes=2)
    if config.init_from and not epath.Path(config.init_from).is_file():
      raise errors.UserError(
        f'init_from={config.init_from}: there is no such file of weights. Of a '
        'run of your own, --mode=export writes one: WORKDIR/model.safetensors.'
      )

  @staticmethod
  def parallel_images(config: Any) -> int:
    """Images of a part of a batch, see `optim.accumulate`."""
    return config.batch_size // config.optim.accumulate

  @staticmethod
  def load_data(config: Any) -> catalog.Dataset:
    """The data set that the config's `data` section names."""
    data = config.data
    return loader.load_classes(
      data.name,
      dir=data.dir,
      image_size=data.image_size,
      seed=config.seed,
      val_fraction=data.val_fraction,
      cache_max_gb=data.cache_max_gb,
      max_corrupt=data.max_corrupt,
    )

  @staticmethod
  def facts(config: Any) -> catalog.Dataset:
    """Sizes and classes of that data set, without an image."""
    data = config.data
    return dataset_info.of_classes(
      data.name, dir=data.dir, val_fraction=data.val_fraction
    )

  @staticmethod
  def names_of(data: catalog.Dataset) -> list[str]:
    """The classes, in label order."""
    return list(data.names)

  @functools.cached_property
  def steps_per_epoch(self) -> int:
    """Whole batches in the training part."""
    return pipeline.steps_per_epoch(self.data.train, self.config.batch_size)

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

  # --- State ---------------------------------------------------------------

  def _variables(self, key: jax.Array) -> Any:
    size = self.config.data.image_size
    return self.model.init(key, jnp.zeros((1, size, size, 3)))

  def fresh(self, seed: int) -> State:
    """A new state; traced by `init`."""
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
      loss_scale=gradients.loss_scale(config.model.dtype),
      monitor=diagnostics.init(
        config.diagnostics.window, len(self.signal_names)
      ),
    )

  @property
  def boxed_params(self) -> Any:
    """Shapes of the weights, with the logical names of their axes."""
    return self._boxed['params']

  @functools.cached_property
  def _placed_params(self) -> Any:
    """Their shardings, which gradients, moments and averages have too."""
    return sharding.param_shardings(self.boxed_params, self.mesh)

  @functools.cached_property
  def abstract_state(self) -> State:
    """Shapes, types and shardings of the state, with nothing computed."""
    with sharding.mesh_context(self.mesh):
      shapes = jax.eval_shape(functools.partial(self.fresh, 0))
    params = self._placed_params
    placed = jax.tree.map(lambda _: sharding.replicated(self.mesh), shapes)
    placed = placed.replace(
      params=params,
      ema=params if shapes.ema is not None else None,
      opt_state=sharding.opt_state_shardings(
        self.tx, shapes.opt_state, params, self.mesh
      ),
    )
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      placed,
    )

  def with_pretrained(self, state: State, path: str) -> State:
    """The state with weights from a file; see `weights.load_pretrained`."""
    # Each process reads the file, and needs the new head whole.
    whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(self.mesh))(
      state.params
    )
    params = pretrained.load_pretrained(
      path,
      self.model,
      jax.device_get(whole),
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

  def train_iterator(self) -> devices.DeviceIterator:
    """Endless training batches on the devices, from the first one on."""
    placed = sharding.batch_sharding(self.mesh)
    return devices.DeviceIterator(
      pipeline.train_iterator(
        self.data.train,
        batch_size=self.config.batch_size,
        seed=self.config.seed,
        workers=self.config.data.workers,
        rows=devices.local_rows(placed, self.config.batch_size),
      ),
      placed,
    )

  @property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What `train_iterator` gives, in shape."""
    count, side = self.config.batch_size, self.config.data.image_size
    placed = sharding.batch_sharding(self.mesh)
    return {
      'image': jax.ShapeDtypeStruct(
        (count, side, side, 3), jnp.uint8, sharding=placed
      ),
      'label': jax.ShapeDtypeStruct((count,), jnp.int32, sharding=placed),
    }

  def step(
    self, state: State, batch: dict[str, Array]
  ) -> tuple[State, Float[Array, 'M']]:
    """One training step; traced by `train_step`.

    Args:
      state: before the step.
      batch: `image` uint8 [B, H, W, 3] and `label` int32 [B].
    """
    found = gradients.of_batch(
      self.objective.loss,
      state.params,
      state.batch_stats,
      self.objective.parts(state, batch),
      self.config.optim.accumulate,
      state.loss_scale,
      self._placed_params,
    )
    updates, opt_state = self.tx.update(
      found.grads, state.opt_state, state.params
    )
    params = jax.tree.map(jnp.add, state.params, updates)
    row = self._measured(state, found, updates)
    signals = jnp.stack([row[name] for name in self.signal_names])
    monitor, verdict = diagnostics.observe(
      state.monitor,
      signals,
      found.loss,
      state.step,
      found.overflow,
      self.detector,
    )
    row |= diagnostics.verdict_row(verdict, monitor)
    state = state.after(
      verdict,
      monitor,
      found.loss_scale,
      params=params,
      batch_stats=found.batch_stats,
      opt_state=opt_state,
      ema=self._averaged(state.ema, params),
    )
    return state, jnp.stack([row[name] for name in self.scalar_names])

  def _measured(
    self, state: State, found: gradients.Gradients, updates: Any
  ) -> dict[str, Float[Array, '']]:
    """Scalars of a step by name, but for the detector's verdict."""
    row = diagnostics.measure(
      loss=found.loss,
      max_logit=found.aux['max_logit'],
      grads=found.grads,
      updates=updates,
      params=state.params,
      clip_norm=self.config.optim.clip_norm,
    )
    row |= diagnostics.layer_norms(found.grads)
    row |= {k: v for k, v in found.aux.items() if '/' in k}
    row['train/top1'] = found.aux['top1']
    row['train/learning_rate'] = self._schedule(
      optim.steps_taken(state.opt_state)
    )
    return row

  def _averaged(self, ema: Any, params: Any) -> Any:
    """The moving average with new weights; None where there is none."""
    decay = self.config.optim.ema
    return ema and jax.tree.map(
      lambda e, p: decay * e + (1 - decay) * p, ema, params
    )

  def locate_nonfinite(self, state: State, batch: dict[str, Array]) -> str:
    """Which layer of the step on `batch` is non-finite first."""
    return self.in_mesh(self.objective.locate_nonfinite)(state, batch)

  # --- Evaluation ----------------------------------------------------------

  @functools.cached_property
  def abstract_weights(self) -> dict[str, Any]:
    """The part of a state that `variables` needs; made without any data."""
    shapes = nn.unbox(self._boxed)
    params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes['params'],
      self._placed_params,
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
      return jax.nn.softmax(self.objective.logits(variables, images))

    return self.in_mesh(
      jax.jit(apply, out_shardings=sharding.replicated(self.mesh))
    )

  @functools.cached_property
  def _scorer(self) -> scoring.Scorer:
    return scoring.Scorer(
      self.objective.logits,
      self.config.loss.kind,
      self.mesh,
      batch_size=self.eval_batch_size,
      workers=self.config.data.workers,
    )

  def evaluate(
    self,
    variables: dict[str, Any],
    split: splits.Split,
    check: Callable[[], None] = lambda: None,
  ) -> scoring.Evaluation:
    """Loss, top-1, top-5 and AUROC over every image of a split, once.

    Args:
      variables: the model's, as `variables` gives them.
      split: the images.
      check: called between batches; may raise to leave the evaluation.
    """
    return self._scorer.evaluate(variables, split, check)

  def validate(
    self, variables: dict[str, Any], check: Callable[[], None]
  ) -> dict[str, float]:
    """`loss top1 top5 auroc` of the validation part."""
    values = dict(self.evaluate(variables, self.data.val, check).values)
    del values['num_examples']
    return values

  def final(
    self,
    variables: dict[str, Any],
    run: workdir_lib.Workdir,
    check: Callable[[], None] = lambda: None,
  ) -> dict[str, Any]:
    """Evaluates on the test part and writes predictions.npz.

    A data set without a test part is evaluated on its validation part, and
    `split` says so.

    Args:
      variables: the model's, as `variables` gives them.
      run: where predictions.npz goes.
      check: called between batches; may raise to leave the evaluation.

    Returns:
      `split num_examples loss top1 top5 auroc`.
    """
    name = 'test' if self.data.test is not None else 'val'
    split = getattr(self.data, name)
    result = self.evaluate(variables, split, check)
    predictions = scoring.predictions(split, result, self.names)
    run.write_bytes(workdir_lib.PREDICTIONS, predictions)
    return {'split': name, **result.values}

  @staticmethod
  def summary(result: dict[str, Any]) -> str:
    """The content of eval.json in words."""
    which = ', averaged' if result['weights'] == 'ema' else ''
    return (
      f'Result on the {result["split"]} part ({result["num_examples"]} images; '
      f'weights of step {result["step"]}{which}):\n'
      f'  top-1 {result["top1"]:.4f}, top-5 {result["top5"]:.4f}, AUROC '
      f'{result["auroc"]:.4f}, loss {result["loss"]:.4f}'
    )
