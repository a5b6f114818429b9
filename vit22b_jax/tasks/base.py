"""Defines what the training loop asks of a task, and what all tasks share.

task = Classification(config, mesh, names, data)
state = task.init_state()                           # sharded over the mesh
with sharding.mesh_context(task.mesh):
  state, scalars = task.train_step(state, batch)    # jitted, state donated
values = task.evaluator.validate(task.variables(state.to_dict())[0])
"""

import abc
import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training import dynamic_scale
from jaxtyping import Array, Bool, Float, Int, UInt32
from ml_collections import ConfigDict

from vit22b_jax import durations
from vit22b_jax.data import pipeline
from vit22b_jax.runtime import sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import evaluators
from vit22b_jax.training import diagnostics, gradients, optim


@flax.struct.dataclass
class State:
  """Holds what every task's step changes; a task may add to it.

  Attributes:
    step: steps done.
    key: raw random key of the run; a step folds its number in.
    params: the weights, float32.
    opt_state: optax's state.
    monitor: the explosion detector's memory.
    loss_scale: dynamic loss scale for float16; None otherwise.
  """

  step: Int[Array, '']
  key: UInt32[Array, '2']
  params: Any
  opt_state: Any
  monitor: diagnostics.Monitor
  loss_scale: dynamic_scale.DynamicScale | None

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields by name, which is how checkpoints hold a state."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def split_seed(config: ConfigDict) -> int:
  """Returns the seed that chooses a validation part."""
  chosen = config.data.split_seed
  return config.seed if chosen is None else chosen


class Task(abc.ABC):
  """Trains one thing on one mesh with one configuration.

  A task sets `model` and `scalars`, calls this constructor, and then sets
  `evaluator`.

  Args:
    config: the run's configuration.
    mesh: where arrays live.
    names: of the classes in label order, or of the two domains.
    data: what `load_data` or, to plan a run, `dataset_info` gives; None to only
      use trained weights, without the last four attributes.

  Attributes:
    model: the linen module; of a translation, the generator.
    scalars: names of what a step returns.
    evaluator: measures weights on the parts of the data that aren't trained on.
    variable_shapes: of the models, boxed with the logical names of their axes.
    param_shardings: of the weights; gradients and moments have the same.
    abstract_params: shapes, types and shardings of the weights.
    abstract_state: shapes, types and shardings of the state.
    train_step: jitted (state, batch) -> (state, scalars [M]), to be called
      under `sharding.mesh_context(mesh)`; the state is donated. The scalars are
      float32 in the order of `scalars.all`: one vector, so that reading them
      costs a single transfer.
    steps_per_epoch: steps in which every training image is seen about once.
    total_steps: length of the whole run.

  Raises:
    UserError: sizes that don't fit together.
  """

  model: nn.Module
  scalars: diagnostics.ScalarNames
  evaluator: evaluators.Evaluator

  def __init__(
    self,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    names: list[str],
    data: Any | None = None,
  ):
    self.config, self.mesh, self.data = config, mesh, data
    self.names = list(names)
    sharding.validate_batch_size(config.batch_size, mesh)
    with sharding.mesh_context(mesh):
      self.variable_shapes = jax.eval_shape(lambda: self.init_variables(0))
    boxed = self.variable_shapes['params']
    self.param_shardings = sharding.param_shardings(boxed, mesh)
    self.abstract_params = jax.tree.map(
      abstract, nn.unbox(boxed), self.param_shardings
    )
    if data is None:
      return
    self.steps_per_epoch = self.count_steps_per_epoch()
    self.total_steps = durations.steps(
      config.duration, steps_per_epoch=self.steps_per_epoch
    )
    tx, self._schedule = optim.make(
      config.optim,
      batch_size=config.batch_size,
      total_steps=self.total_steps,
      steps_per_epoch=self.steps_per_epoch,
    )
    self.use_optimizer(tx)

  def use_optimizer(self, tx: optax.GradientTransformation) -> None:
    """Sets the optimizer, and with it `abstract_state` and `train_step`."""
    self.tx = tx
    variables = nn.unbox(self.variable_shapes)
    with sharding.mesh_context(self.mesh):
      shapes = jax.eval_shape(lambda v: self.new_state(v, 0), variables)
    whole = sharding.replicated(self.mesh)
    shardings = jax.tree.map(lambda _: whole, shapes).replace(
      params=self.param_shardings, **self.shardings(shapes)
    )
    self.abstract_state = jax.tree.map(abstract, shapes, shardings)
    self.train_step = jax.jit(
      self.step,
      donate_argnums=0,
      in_shardings=(shardings, sharding.batch_sharding(self.mesh)),
      out_shardings=(shardings, sharding.replicated(self.mesh)),
    )

  def steps(self, duration: int | str) -> int:
    """Returns a duration of the config in steps."""
    return durations.steps(
      duration,
      steps_per_epoch=self.steps_per_epoch,
      total_steps=self.total_steps,
    )

  def validate_sharding(self) -> str:
    """Says which weights devices hold whole, if any that they should share.

    Raises:
      UserError: more of them than `mesh.max_replicated` allows.
    """
    return sharding.validate_unsharded(
      self.variable_shapes['params'], self.mesh, self.config.mesh.max_replicated
    )

  # --- Data ----------------------------------------------------------------

  @staticmethod
  @abc.abstractmethod
  def validate_config(config: ConfigDict) -> None:
    """Raises UserError where keys don't fit together, before data are read."""

  @staticmethod
  @abc.abstractmethod
  def load_data(config: ConfigDict) -> Any:
    """Loads the data set of the config's `data` section."""

  @staticmethod
  @abc.abstractmethod
  def dataset_info(config: ConfigDict) -> Any:
    """Returns what `load_data` would, but without images: enough for a plan.

    Raises:
      UserError: the data set is neither there nor well known.
    """

  @staticmethod
  def images_at_once(config: ConfigDict) -> int:
    """Returns how many images of a step devices can share at once."""
    return config.batch_size

  @abc.abstractmethod
  def count_steps_per_epoch(self) -> int:
    """Counts the steps in which every training image is seen about once."""

  @abc.abstractmethod
  def host_batches(self, **options: Any) -> pipeline.Batches:
    """Yields training batches; options are `pipeline.train_iterator`'s."""

  def train_batches(self) -> pipeline.DeviceIterator:
    """Iterates without end over training batches on the devices."""
    placed = sharding.batch_sharding(self.mesh)
    options = {
      'batch_size': self.config.batch_size,
      'seed': self.config.seed,
      'workers': self.config.data.workers,
      'rows': pipeline.local_rows(placed, self.config.batch_size),
    }
    return pipeline.DeviceIterator(
      lambda start: self.host_batches(start=start, **options), placed
    )

  @property
  @abc.abstractmethod
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, types and shardings of a training batch."""

  @property
  @abc.abstractmethod
  def flops_per_image(self) -> float:
    """Returns the model FLOPs of a training step for one image; see `flops`."""

  # --- State ---------------------------------------------------------------

  @abc.abstractmethod
  def init_variables(self, seed: int) -> dict[str, Any]:
    """Draws the models' variables, boxed: `params` and others. Traced."""

  @abc.abstractmethod
  def new_state(self, variables: dict[str, Any], seed: int) -> State:
    """Returns the state before the first step, of unboxed variables. Traced."""

  @abc.abstractmethod
  def shardings(self, shapes: State) -> dict[str, Any]:
    """Returns the shardings of what isn't whole in a state, beside `params`."""

  def init_state(self) -> State:
    """Makes a new state from the config's seed, each array where it lives."""

    def new(seed):
      return self.new_state(nn.unbox(self.init_variables(seed)), seed)

    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    with sharding.mesh_context(self.mesh):
      return jax.jit(new, static_argnums=0, out_shardings=shardings)(
        self.config.seed
      )

  def common_state(self, params: Any, key: jax.Array) -> dict[str, Any]:
    """Returns the fields of a new state that need no optimizer, by name."""
    return {
      'step': jnp.zeros((), jnp.int32),
      'key': jax.random.key_data(key),
      'params': params,
      'monitor': diagnostics.init(
        self.config.diagnostics.window, len(self.scalars.signals)
      ),
      'loss_scale': gradients.loss_scale(self.config.model.dtype),
    }

  @abc.abstractmethod
  def with_pretrained(
    self, state: State, path: str, step: int | None = None
  ) -> State:
    """Returns the state with the weights that `init_from` names.

    `step` is that of another run's checkpoint; None for its newest.
    """

  @property
  @abc.abstractmethod
  def abstract_weights(self) -> dict[str, Any]:
    """Returns the part of a state that `variables` needs; without any data."""

  @abc.abstractmethod
  def variables(self, weights: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns what the models apply, and which weights: 'params' or 'ema'."""

  # --- Steps ---------------------------------------------------------------

  @abc.abstractmethod
  def step(
    self, state: State, batch: dict[str, Array]
  ) -> tuple[State, Float[Array, 'M']]:
    """Takes one training step; traced by `train_step`."""

  def step_key(self, state: State) -> jax.Array:
    """Returns the random key of the step from `state`."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

  def finish_step(
    self,
    state: State,
    row: dict[str, Float[Array, '']],
    overflow: Bool[Array, ''],
    loss_scale: dynamic_scale.DynamicScale | None,
    **new: Any,
  ) -> tuple[State, Float[Array, 'M']]:
    """Lets the detector judge a step, and takes it if it may.

    Args:
      state: before the step; it stays so once the detector has stopped.
      row: what was measured, by name.
      overflow: float16 gradients overflowed.
      loss_scale: for the next step.
      **new: fields of the state after the step.

    Returns:
      The state after the step, and its scalars in the order of `scalars.all`.
    """
    signals = jnp.stack([row[name] for name in self.scalars.signals])
    settings = self.config.diagnostics
    monitor, verdict = diagnostics.observe(
      state.monitor,
      signals,
      row['loss'],
      state.step,
      overflow,
      settings,
      self.steps(settings.ignore),
    )
    row |= verdict
    keep = verdict['verdict/keep'] > 0
    taken = optim.steps_taken(state.opt_state)
    row['train/learning_rate'] = self._schedule(taken)

    def unless(kept, new, old):
      return jax.tree.map(lambda n, o: jnp.where(kept, o, n), new, old)

    state = state.replace(
      step=state.step + jnp.where(monitor.stopped, 0, 1),
      monitor=monitor,
      loss_scale=unless(monitor.stopped, loss_scale, state.loss_scale),
      **{k: unless(keep, x, getattr(state, k)) for k, x in new.items()},
    )
    return state, jnp.stack([row[name] for name in self.scalars.all])

  @abc.abstractmethod
  def locate_nonfinite(self, state: State, batch: dict[str, Array]) -> str:
    """Finds which layer of the step on `batch` is non-finite first."""

  def sample(  # noqa: B027 (most tasks have nothing to show)
    self, state: State, run: workdir_lib.Workdir
  ) -> None:
    """Writes pictures of what the models do by now into the workdir."""


def abstract(x: Any, placed: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  """Returns the shape, type and sharding of an array that need not exist."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
