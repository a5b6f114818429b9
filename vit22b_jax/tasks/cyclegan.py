"""Trains and evaluates image translation between two unpaired domains.

    task = CycleGAN(config, mesh, names, data)
    state = task.init_state()
    with sharding.mesh_context(mesh):
      state, scalars = task.train_step(state, batch)
    images = task.translate(variables, images, 'a2b')

One jitted step does everything of both updates: see `cyclegan_update`.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from vit22b_jax import config as config_lib
from vit22b_jax.data import augment, catalog, loader, pipeline
from vit22b_jax.fid import image_sources
from vit22b_jax.models import kernels
from vit22b_jax.report import samples
from vit22b_jax.runtime import console, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base, fid_evaluator, pools
from vit22b_jax.tasks import cyclegan_update as update
from vit22b_jax.training import diagnostics, gradients
from vit22b_jax.weights import initial

# Columns and signals: the gradient norm of each network.
_NORMS = tuple(f'grad_norm/{name}' for name in update.NETWORKS)
_GROUPS = {
  'generators': update.GENERATORS,
  'discriminators': update.DISCRIMINATORS,
}


@flax.struct.dataclass
class State(base.State):
  """Holds everything that a step changes, with the weights by network.

  Attributes:
    pools: earlier fakes of the domains `a` and `b`; None without pools.
  """

  pools: dict[str, pools.Pool | None]


class CycleGAN(base.Task):
  """Trains two generators and two discriminators; see `base.Task`.

  Of the mesh's devices along `data`, as many are used as can share a batch: one
  for CycleGAN's batch of 1.

  Attributes:
    networks: the modules and losses.
  """

  def __init__(
    self,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    names: list[str],
    data: catalog.Dataset | None = None,
  ):
    shared = sharding.part_for_batch(mesh, config.batch_size)
    if data is not None and shared.size < mesh.size:
      console.say(
        f'{shared.size} of {mesh.size} devices are used: no more can share '
        f'batch_size={config.batch_size}.'
      )
    config_lib.resolve_dtype(config, mesh.devices.flat[0].platform)
    self.networks = update.build_networks(config)
    self.model = self.networks.generator
    self.scalars = diagnostics.ScalarNames(
      diagnostics.COLUMNS + (_NORMS if config.diagnostics.per_layer else ()),
      (*diagnostics.JUDGED, *_NORMS),
      tuple(f'train/{name}' for name in self.networks.terms),
    )
    super().__init__(config, shared, names, data)
    self.evaluator = fid_evaluator.FidEvaluator(
      config,
      self.mesh,
      data,
      self._translated,
      lambda: self.variables({'params': self._draw_params()})[0],
    )
    self._generate = jax.jit(self._apply)  # one program for both directions
    self._rounded = jax.jit(
      lambda images: jnp.round(images).astype(jnp.uint8),
      out_shardings=sharding.replicated(self.mesh),
    )

  # --- Data ----------------------------------------------------------------

  validate_config = staticmethod(update.validate_networks)

  @staticmethod
  def load_data(config: ConfigDict) -> catalog.Dataset:
    """Loads the two domains that the config's `data` section names."""
    keys = ('name', 'dir', 'load_size', 'image_size')
    keys += ('val_fraction', 'cache_max_gb', 'max_corrupt')
    section = {key: config.data[key] for key in keys}
    return loader.load_domains(
      mode=config.data.preprocess,
      paired=config.data.pairing == 'paired',
      seed=base.split_seed(config),
      **section,
    )

  @staticmethod
  def dataset_info(config: ConfigDict) -> catalog.Dataset:
    data = config.data
    return catalog.count_domains(
      data.name,
      dir=data.dir,
      paired=data.pairing == 'paired',
      val_fraction=data.val_fraction,
    )

  def count_steps_per_epoch(self) -> int:
    """Counts steps that see the larger (paired: the smaller) domain once."""
    return pipeline.pair_steps_per_epoch(
      self.data.train, self.config.batch_size, self.config.data.pairing
    )

  def host_batches(self, **options: Any) -> pipeline.Batches:
    pairing = self.config.data.pairing
    return pipeline.pair_iterator(self.data.train, pairing=pairing, **options)

  @property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, types and shardings of a training batch.

    Images that are cropped but not resized may come larger than this.
    """
    data = self.config.data
    resized = data.preprocess == 'resize_and_crop'
    side = data.load_size if resized else data.image_size
    images = jax.ShapeDtypeStruct(
      (self.config.batch_size, side, side, 3),
      jnp.uint8,
      sharding=sharding.batch_sharding(self.mesh),
    )
    return {'a': images, 'b': images}

  @functools.cached_property  # it traces the networks, and each row asks
  def flops_per_image(self) -> float:
    """Returns the model FLOPs of a step for one image of each domain."""
    return self.networks.training_flops(self.config.data.image_size)

  # --- State ---------------------------------------------------------------

  def init_variables(self, seed: int) -> dict[str, Any]:
    """Draws boxed `params` by network, each from a key of its own. Traced."""
    keys = _init_keys(seed)
    return {
      'params': {n: self._init_network(n, keys[n]) for n in update.NETWORKS}
    }

  def _init_network(self, name: str, key: jax.Array) -> Any:
    size = self.config.data.image_size
    kind = 'generator' if name in update.GENERATORS else 'discriminator'
    module = getattr(self.networks, kind)
    return module.init(key, jnp.zeros((1, size, size, 3)))['params']

  def new_state(self, variables: dict[str, Any], seed: int) -> State:
    params, size = variables['params'], self.config.data.image_size
    return State(
      **self.common_state(params, _init_keys(seed)['step']),
      opt_state={
        group: self.tx.init(update.pick(params, names))
        for group, names in _GROUPS.items()
      },
      pools={
        domain: pools.init(self.config.optim.pool_size, (size, size, 3))
        for domain in 'ab'
      },
    )

  def _draw_params(self) -> dict[str, Any]:
    """Draws the weights that the config's seed stands for, where they live.

    Compiles a program for each kind of network and runs it twice, since drawing
    hundreds of arrays takes long to compile and no time to run.
    """
    keys, params = _init_keys(self.config.seed), {}
    with sharding.mesh_context(self.mesh):
      for names in _GROUPS.values():
        draw = jax.jit(
          lambda key, name=names[0]: nn.unbox(self._init_network(name, key)),
          out_shardings=self.param_shardings[names[0]],
          compiler_options=kernels.run_once_options(),
        )
        params |= {name: draw(keys[name]) for name in names}
    return params

  def init_state(self) -> State:
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    variables = {'params': self._draw_params()}
    with sharding.mesh_context(self.mesh):
      return jax.jit(
        self.new_state,
        static_argnums=1,
        donate_argnums=0,
        out_shardings=shardings,
      )(variables, self.config.seed)

  def shardings(self, shapes: State) -> dict[str, Any]:
    """Splits moments as the weights are split, and pools by rows of images."""
    opt_state = {
      group: sharding.opt_state_shardings(
        self.tx,
        shapes.opt_state[group],
        update.pick(self.param_shardings, names),
        self.mesh,
      )
      for group, names in _GROUPS.items()
    }
    return {
      'opt_state': opt_state,
      'pools': pools.shardings(shapes.pools, self.mesh),
    }

  def with_pretrained(
    self, state: State, path: str, step: int | None = None
  ) -> State:
    """Returns the state with the networks of another run."""
    wanted = {'params': self.abstract_params}
    return state.replace(**initial.restore(path, wanted, 'translation', step))

  @property
  def abstract_weights(self) -> dict[str, Any]:
    return {'params': update.pick(self.abstract_params, update.GENERATORS)}

  def variables(self, weights: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the generators' parameters by name, and 'params'."""
    return update.pick(weights['params'], update.GENERATORS), 'params'

  # --- Steps ---------------------------------------------------------------

  def step(
    self, state: State, batch: dict[str, UInt8[Array, 'B h w 3']]
  ) -> tuple[State, Float[Array, 'M']]:
    """Takes one step on images of `a` and `b`; traced by `train_step`."""
    done = self._update(state, batch)
    grads, seen = done.grads, done.seen
    loss_scale, overflow = state.loss_scale, jnp.asarray(False)
    if loss_scale is not None:
      finite = gradients.all_finite(grads)
      loss_scale = gradients.next_loss_scale(loss_scale, finite)
      overflow = ~finite & jnp.isfinite(seen['loss'])
    row = diagnostics.measure(
      loss=seen['loss'],
      max_logit=seen['max_score'],
      max_abs_logit=seen['max_score'],
      grads=grads,
      updates=done.updates,
      params=state.params,
      clip_norm=self.config.optim.clip_norm,
    )
    row['clipped_grad_norm'] = update.clipped_norm(
      grads, self.config.optim.clip_norm
    )
    row |= {f'grad_norm/{k}': optax.tree.norm(g) for k, g in grads.items()}
    row |= {f'train/{name}': seen[name] for name in self.networks.terms}
    return self.finish_step(
      state,
      row,
      overflow,
      loss_scale,
      params=jax.tree.map(jnp.add, state.params, done.updates),
      opt_state=done.opt_state,
      pools=done.pools,
    )

  def _update(self, state: State, batch: dict[str, Array]) -> update.Updates:
    """Crops, mirrors and scales images to [-1, 1]; computes both updates."""
    data = self.config.data
    image_key, key = jax.random.split(self.step_key(state))
    crop = functools.partial(
      augment.crop_and_flip, size=(data.image_size,) * 2, flip=data.flip
    )
    keys = jax.random.split(image_key)
    if data.pairing == 'paired':  # the images of a pair are cut alike
      keys = [keys[0]] * 2
    real = {
      domain: augment.to_signed(crop(k, batch[domain]))
      for k, domain in zip(keys, 'ab', strict=True)
    }
    return update.cyclegan_update(
      state,
      self.networks,
      self.tx,
      real,
      key,
      order=self.config.optim.update_order,
      mesh=self.mesh,
    )

  def locate_nonfinite(self, state: State, batch: dict[str, Array]) -> str:
    """Finds which image, score or gradient of the step isn't finite first."""
    names: list[str] = []

    def passes(state, batch):
      done = self._update(state, batch)
      forward = {**done.made, **done.seen}
      backward = {f'the gradient of {k}': v for k, v in done.grads.items()}
      # A dict would come back sorted: forward order, then backward.
      names.extend((*forward, *backward))
      found = (*forward.values(), *backward.values())
      return [gradients.all_finite(x) for x in found]

    with sharding.mesh_context(self.mesh):
      flags = jax.device_get(jax.jit(passes)(state, batch))
    found = [n for n, ok in zip(names, flags, strict=True) if not ok]
    return found[0] if found else 'the update'

  # --- Use -----------------------------------------------------------------

  def _apply(self, params: Any, images: Array) -> Array:
    made = self.model.apply(
      {'params': params}, augment.to_signed(images), train=False
    )
    return (made + 1) * 127.5

  def _translated(self, variables, images, direction):
    """Translates to float32 in [0, 255], which FID quantizes itself."""
    name = 'gen_' + ''.join(image_sources.DIRECTIONS[direction])
    with sharding.mesh_context(self.mesh):
      return self._generate(variables[name], images)

  def translate(
    self,
    variables: dict[str, Any],
    images: UInt8[Array, 'B H W 3'],
    direction: str,
  ) -> UInt8[Array, 'B H W 3']:
    """Translates images, 'a2b' or 'b2a'; see `generators.fitting_size`."""
    made = self._translated(variables, images, direction)
    with sharding.mesh_context(self.mesh):
      return self._rounded(made)

  def sample(self, state: State, run: workdir_lib.Workdir) -> None:
    """Writes samples/DIRECTION_STEP.png: real, translated and back again."""
    variables, _ = self.variables(state.to_dict())
    for direction, (source, _) in image_sources.DIRECTIONS.items():
      split = getattr(self.data.val, source)
      # The same images every time, from all over the val part.
      count = min(self.config.log.num_samples, len(split))
      places = np.linspace(0, len(split) - 1, count).round().astype(int)
      real = np.stack([split[int(i)]['image'] for i in places])
      made = self.translate(variables, real, direction)
      back = self.translate(variables, made, direction[::-1])
      rows = [real, made, back]
      samples.write(run, f'samples/{direction}', int(state.step), rows)


def _init_keys(seed: int) -> dict[str, jax.Array]:
  """Returns a key for each network, and one for the steps."""
  names = (*update.NETWORKS, 'step')
  keys = jax.random.split(jax.random.key(seed), len(names))
  return dict(zip(names, keys, strict=True))
