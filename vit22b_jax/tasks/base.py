"""What the training loop asks of a task, and what every task does alike.

    class Classification(base.Task): ...

The loop (train.py), the command line and `api` know a task by this interface
alone. One task lives on one mesh with one configuration.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
from flax.training import dynamic_scale
from jaxtyping import Array, Float, Int, UInt32

from vit22b_jax import durations
from vit22b_jax.data import devices
from vit22b_jax.runtime import console, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.training import diagnostics


@flax.struct.dataclass
class State:
  """What every task's state has; a task adds its weights and optimiser.

  Attributes:
    step: steps done.
    key: raw random key of the run; a step folds its number in.
    monitor: the explosion detector's memory.
    loss_scale: dynamic loss scale for float16; None otherwise.
  """

  step: Int[Array, '']
  key: UInt32[Array, '2']
  monitor: diagnostics.Monitor
  loss_scale: dynamic_scale.DynamicScale | None

  def after(
    self,
    verdict: diagnostics.Verdict,
    monitor: diagnostics.Monitor,
    loss_scale: dynamic_scale.DynamicScale | None,
    **new: Any,
  ) -> Self:
    """The state after a step, as far as the detector lets it be taken.

    Args:
      verdict: with `keep`, none of `new` is taken.
      monitor: the detector's memory after the step; once it has stopped, the
        state stays that of before the step.
      loss_scale: for the next step.
      **new: the task's own fields.
    """

    def unless(kept, new, old):
      return jax.tree.map(lambda n, o: jnp.where(kept, o, n), new, old)

    return self.replace(
      step=self.step + jnp.where(monitor.stopped, 0, 1),
      monitor=monitor,
      loss_scale=unless(monitor.stopped, loss_scale, self.loss_scale),
      **{k: unless(verdict.keep, x, getattr(self, k)) for k, x in new.items()},
    )


class Task(abc.ABC):
  """One thing to train.

  Args:
    config: the run's configuration.
    mesh: where arrays live.
    names: of the classes in label order, or of the two domains.
    data: what `load_data` or, to plan a run, `facts` gives; None to only use
      trained weights.

  Attributes:
    best_metric: the row of metrics.jsonl that ranks checkpoints.
    best_mode: 'max' or 'min'.
    names_are: what `names` names, in a message.
    logged: scalars of a step whose means go into metrics.jsonl, beside the
      loss.
    cures: what helps against explosions, in a sentence.
    sample_every: steps between two calls of `sample`; 0 for never.
  """

  best_metric: str
  best_mode: str
  names_are: str
  logged: tuple[str, ...] = ()
  cures: str = (
    'A lower optim.learning_rate, a longer optim.warmup, model.qk_norm or '
    'model.pre_norm are the usual cures.'
  )
  sample_every: int = 0

  def __init__(
    self,
    config: Any,
    mesh: jax.sharding.Mesh,
    names: list[str],
    data: Any | None = None,
  ):
    self.config = config
    self.mesh = mesh
    self.names = list(names)
    self.data = data
    self.eval_batch_size = config.eval.batch_size or config.batch_size
    sharding.validate_batch_size(config.batch_size, mesh)
    sharding.validate_batch_size(self.eval_batch_size, mesh, 'eval.batch_size')

  # --- Before training -----------------------------------------------------

  @staticmethod
  @abc.abstractmethod
  def check(config: Any) -> None:
    """Judges the task's own keys before any data are read.

    Raises:
      UserError: a value or sizes that don't fit together.
    """

  @staticmethod
  def parallel_images(config: Any) -> int:
    """Images of a training step that devices can share at once."""
    return config.batch_size

  @staticmethod
  @abc.abstractmethod
  def load_data(config: Any) -> Any:
    """The data set of the config's `data` section."""

  @staticmethod
  @abc.abstractmethod
  def facts(config: Any) -> Any:
    """What `load_data` would give, but sizes and names without any image.

    With it in the place of data, a task can't train, yet `lower_step` works.

    Raises:
      UserError: the data set is neither there nor well known.
    """

  @staticmethod
  @abc.abstractmethod
  def names_of(data: Any) -> list[str]:
    """The `names` that a data set gives."""

  def prepare(self) -> None:
    """Judges the mesh, and gets what training will need later.

    Nothing can be lost yet.

    Raises:
      UserError: too much is left whole, or something can't be had.
    """
    if text := self.check_sharding():
      console.say(text)

  def check_sharding(self) -> str:
    """Which weights are left whole, if any; see `sharding.validate_unsharded`.

    Raises:
      UserError: more of them than `mesh.max_replicated` allows.
    """
    return sharding.validate_unsharded(
      self.boxed_params, self.mesh, self.config.mesh.max_replicated
    )

  @property
  @abc.abstractmethod
  def steps_per_epoch(self) -> int:
    """Steps in which every training image is seen about once."""

  @functools.cached_property
  def total_steps(self) -> int:
    """Length of the whole run."""
    return durations.steps(
      self.config.duration, steps_per_epoch=self.steps_per_epoch
    )

  def steps(self, duration: int | str) -> int:
    """A duration of the config in steps."""
    return durations.steps(
      duration,
      steps_per_epoch=self.steps_per_epoch,
      total_steps=self.total_steps,
    )

  @property
  @abc.abstractmethod
  def flops_per_image(self) -> float:
    """Model FLOPs of a training step for one image; see `flops`."""

  # --- State ---------------------------------------------------------------

  @property
  @abc.abstractmethod
  def boxed_params(self) -> Any:
    """Shapes of the weights, with the logical names of their axes."""

  @property
  @abc.abstractmethod
  def abstract_state(self) -> State:
    """Shapes, types and shardings of the state, with nothing computed."""

  @property
  @abc.abstractmethod
  def abstract_weights(self) -> dict[str, Any]:
    """The part of a state that `variables` needs; made without any data."""

  @abc.abstractmethod
  def fresh(self, seed: int) -> State:
    """A new state; traced by `init`."""

  def init(self) -> State:
    """A new state from the config's seed, each array made where it lives."""
    placed = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    with sharding.mesh_context(self.mesh):
      return jax.jit(self.fresh, static_argnums=0, out_shardings=placed)(
        self.config.seed
      )

  @abc.abstractmethod
  def with_pretrained(self, state: State, path: str) -> State:
    """The state with the weights of a file (`init_from`)."""

  @abc.abstractmethod
  def variables(self, weights: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What the models apply, and which weights they are: 'params' or 'ema'.

    Args:
      weights: what `abstract_weights` names, as a state has them.
    """

  # --- Steps ---------------------------------------------------------------

  @property
  @abc.abstractmethod
  def signal_names(self) -> list[str]:
    """What the explosion detector remembers of each step, in order."""

  @property
  @abc.abstractmethod
  def diagnostic_names(self) -> list[str]:
    """The columns of diagnostics.csv after `step`."""

  @property
  @abc.abstractmethod
  def scalar_names(self) -> list[str]:
    """Names of the entries of the vector that `train_step` returns."""

  @abc.abstractmethod
  def train_iterator(self) -> devices.DeviceIterator:
    """Endless training batches on the devices, from the first one on."""

  @functools.cached_property
  def train_step(
    self,
  ) -> Callable[[State, dict[str, Array]], tuple[State, Float[Array, 'M']]]:
    """Jitted (state, batch) -> (state, scalars [M]); the state is donated.

    The scalars are float32 in the order of `scalar_names`: one vector, so that
    reading them costs a single transfer.
    """
    return self.in_mesh(self._jitted_step)

  @functools.cached_property
  def _jitted_step(self):
    placed = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    return jax.jit(
      self.step,
      donate_argnums=0,
      in_shardings=(placed, sharding.batch_sharding(self.mesh)),
      out_shardings=(placed, sharding.replicated(self.mesh)),
    )

  @property
  @abc.abstractmethod
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a training batch."""

  def lower_step(self) -> jax.stages.Lowered:
    """The training step for the mesh's devices, which need not be at hand."""
    # Outside of the mesh: what is computed on the way runs here.
    step, state, batch = (
      self._jitted_step,
      self.abstract_state,
      self.abstract_batch,
    )
    with sharding.mesh_context(self.mesh):
      return step.lower(state, batch)

  @abc.abstractmethod
  def step(
    self, state: State, batch: dict[str, Array]
  ) -> tuple[State, Float[Array, 'M']]:
    """One training step; traced by `train_step`."""

  @abc.abstractmethod
  def locate_nonfinite(self, state: State, batch: dict[str, Array]) -> str:
    """Which layer of the step on `batch` is non-finite first."""

  @functools.cached_property
  def detector(self) -> diagnostics.Settings:
    """The explosion detector that the config's `diagnostics` asks for."""
    d = self.config.diagnostics
    return diagnostics.Settings(
      max_logit=d.max_logit,
      max_abs_grad=d.max_abs_grad,
      zscore=d.zscore,
      window=d.window,
      warmup_steps=self.steps(d.ignore),
      policy=d.on_explosion,
    )

  def in_mesh(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called under this task's mesh."""

    @functools.wraps(function)
    def call(*args):
      with sharding.mesh_context(self.mesh):
        return function(*args)

    return call

  # --- Results -------------------------------------------------------------

  @abc.abstractmethod
  def validate(
    self, variables: dict[str, Any], check: Callable[[], None]
  ) -> dict[str, float]:
    """Values of the validation part, by name.

    Args:
      variables: as `variables` gives them.
      check: called between batches; may raise to leave the evaluation.
    """

  @property
  def validation_note(self) -> str:
    """What has to be said with the values of `validate`."""
    return ''

  @abc.abstractmethod
  def final(
    self,
    variables: dict[str, Any],
    run: workdir_lib.Workdir,
    check: Callable[[], None] = lambda: None,
  ) -> dict[str, Any]:
    """Evaluates on the test part: the content of eval.json.

    Args:
      variables: as `variables` gives them.
      run: where the task writes other files of the result.
      check: called between batches; may raise to leave the evaluation.
    """

  @staticmethod
  @abc.abstractmethod
  def summary(result: dict[str, Any]) -> str:
    """The content of eval.json in words."""

  def sample(  # noqa: B027 (most tasks have nothing to show)
    self, state: State, run: workdir_lib.Workdir
  ) -> None:
    """Writes pictures of what the models do by now into the workdir."""
