"""Training and evaluating image translation between two unpaired domains.

    task = Translation(config, mesh, names, data)
    state = task.init()                              # sharded over the mesh
    state, scalars = task.train_step(state, batch)   # jitted, state donated
    images = task.translate(variables, images, 'a2b')

One jitted step does everything of both updates: see `updates`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from vit22b_jax import errors
from vit22b_jax.data import (
  augment,
  catalog,
  dataset_info,
  devices,
  loader,
  pipeline,
  splits,
)
from vit22b_jax.fid import image_sources
from vit22b_jax.models import generators, kernels, patchgan
from vit22b_jax.report import samples
from vit22b_jax.runtime import console, flops, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import base, cyclegan, pools, quality, starts, updates
from vit22b_jax.training import diagnostics, gradients, losses_gan, optim

# Columns and signals: the gradient norm of each network.
_NORMS = tuple(f'grad_norm/{name}' for name in cyclegan.NETWORKS)


@flax.struct.dataclass
class State(base.State):
  """Everything that a step changes.

  Attributes:
    params: the weights of `cyclegan.NETWORKS`, float32.
    opt_state: optax's states of `generators` and `discriminators`.
    pools: earlier fakes of the domains `a` and `b`; None without pools.
  """

  params: Any
  opt_state: Any
  pools: dict[str, pools.Pool | None]


def build_networks(config: Any) -> cyclegan.Networks:
  """The networks and losses that a config describes."""
  model = config.model
  return cyclegan.Networks(
    generators.build(dict(model), config.data.image_size),
    patchgan.build(config.discriminator.name, model.dtype, model.precision),
    **config.loss,
  )


class Translation(base.Task):
  """Two generators and two discriminators on one mesh.

  Args:
    config: the run's configuration.
    mesh: where arrays live; of its devices along `data`, as many are used as
      can share a batch: one for CycleGAN's batch of 1.
    names: of domain a and of domain b.
    data: the splits to train and evaluate on; None to only translate.

  Raises:
    UserError: sizes that don't fit together.
  """

  best_metric = 'val/fid'
  best_mode = 'min'
  names_are = 'domains'
  cures = (
    'A lower optim.learning_rate, a longer optim.warmup, loss.gan=lsgan, a '
    'clip_norm above 0 or model.dtype=float32 are the usual cures.'
  )

  def __init__(
    self,
    config: Any,
    mesh: jax.sharding.Mesh,
    names: list[str],
    data: catalog.Dataset | None = None,
  ):
    super().__init__(config, _sharing(mesh, config.batch_size), names, data)
    if data is not None and self.mesh.size < mesh.size:
      console.say(
        f'{self.mesh.size} of {mesh.size} devices are used: no more can share '
        f'batch_size={config.batch_size}.'
      )
    # As many as Inception takes at once: it would pad smaller batches.
    self.eval_batch_size = config.eval.batch_size or config.fid.batch_size
    key = 'eval.batch_size' if config.eval.batch_size else 'fid.batch_size'
    sharding.validate_batch_size(self.eval_batch_size, self.mesh, key)
    self.networks = build_networks(config)
    self.logged = tuple(f'train/{name}' for name in self.networks.terms)
    if data is not None:
      self.sample_every = self.steps(config.log.samples)
      self.tx, self._schedule = optim.make(
        config.optim,
        total_steps=self.total_steps,
        steps_per_epoch=self.steps_per_epoch,
      )

  @staticmethod
  def check(config: Any) -> None:
    """Judges networks, losses and `init_from` before data are read.

    Raises:
      UserError: a value that isn't known, or sizes that don't fit together.
    """
    networks = build_networks(config)
    discriminator = networks.discriminator.preset
    size, smallest = config.data.image_size, discriminator.smallest
    if size < smallest:
      raise errors.UserError(
        f'data.image_size={size}: the discriminator '
        f'{config.discriminator.name!r} judges images of {smallest} pixels at '
        'least.'
      )
    errors.validate_choice('loss.gan', config.loss.gan, losses_gan.GANS)
    errors.validate_choice('optim.first', config.optim.first, updates.FIRST)
    if discriminator.sigmoid and config.loss.gan == 'vanilla':
      raise errors.UserError(
        f"loss.gan='vanilla' takes logits, and the discriminator "
        f'{config.discriminator.name!r} gives probabilities: use '
        "loss.gan='lsgan' or discriminator.name='patchgan70'."
      )
    if config.init_from:
      starts.check(config.init_from)

  @staticmethod
  def load_data(config: Any) -> catalog.Dataset:
    """The two domains that the config's `data` section names."""
    data = config.data
    return loader.load_domains(
      data.name,
      dir=data.dir,
      load_size=data.load_size,
      image_size=data.image_size,
      mode=data.preprocess,
      seed=config.seed,
      val_fraction=data.val_fraction,
      cache_max_gb=data.cache_max_gb,
      max_corrupt=data.max_corrupt,
    )

  @staticmethod
  def facts(config: Any) -> catalog.Dataset:
    """Sizes and names of those domains, without an image."""
    data = config.data
    return dataset_info.of_domains(
      data.name, dir=data.dir, val_fraction=data.val_fraction
    )

  @staticmethod
  def names_of(data: catalog.Dataset) -> list[str]:
    """The domains, a and b."""
    return list(data.names)

  @functools.cached_property
  def steps_per_epoch(self) -> int:
    """Steps in which the larger (paired: the smaller) domain is seen once."""
    return pipeline.pair_steps_per_epoch(
      self.data.train, self.config.batch_size, self.config.data.pairing
    )

  @functools.cached_property
  def flops_per_image(self) -> float:
    """Model FLOPs of a training step for one image of each domain.

    A pass backward is two forward, or one where the weights are constants, as
    the discriminators' are to the generators.
    """
    size = (self.config.data.image_size,) * 2
    generator, discriminator = (
      flops.image_flops(network, size)
      for network in (self.networks.generator, self.networks.discriminator)
    )
    passes = 6 if self.config.loss.lambda_identity else 4
    judged = 2 * 2 + 4 * 3  # fakes for the generators; real ones and fakes
    return passes * 3 * generator + judged * discriminator

  # --- State ---------------------------------------------------------------

  def _init_params(self, seed: int) -> dict[str, Any]:
    """Boxed parameters by network, each from a key of its own."""
    keys = _init_keys(seed)
    return {
      name: self._init_network(name, keys[name]) for name in cyclegan.NETWORKS
    }

  def _init_network(self, name: str, key: jax.Array) -> Any:
    """Boxed parameters of one network."""
    size = self.config.data.image_size
    module = self.networks.modules[name]
    return module.init(key, jnp.zeros((1, size, size, 3)))['params']

  def fresh(self, seed: int) -> State:
    """A new state; traced by `abstract_state`."""
    return self._around(nn.unbox(self._init_params(seed)), seed)

  def _around(self, params: dict[str, Any], seed: int) -> State:
    """A new state with these weights."""
    config = self.config
    image = (config.data.image_size, config.data.image_size, 3)
    return State(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key_data(_init_keys(seed)['step']),
      monitor=diagnostics.init(
        config.diagnostics.window, len(self.signal_names)
      ),
      params=params,
      opt_state={
        'generators': self.tx.init(updates.pick(params, cyclegan.GENERATORS)),
        'discriminators': self.tx.init(
          updates.pick(params, cyclegan.DISCRIMINATORS)
        ),
      },
      pools={d: pools.init(config.optim.pool_size, image) for d in 'ab'},
      loss_scale=gradients.loss_scale(config.model.dtype),
    )

  def _initial_params(self) -> dict[str, Any]:
    """The weights that the config's seed stands for, where they live.

    A program for each kind of network, run twice, since drawing hundreds of
    arrays takes long to compile and no time to run.
    """
    keys = _init_keys(self.config.seed)
    placed = sharding.param_shardings(self.boxed_params, self.mesh)
    with sharding.mesh_context(self.mesh):
      options = kernels.run_once_options()
    params = {}
    for kind in (cyclegan.GENERATORS, cyclegan.DISCRIMINATORS):
      draw = self.in_mesh(
        jax.jit(
          lambda key, name=kind[0]: nn.unbox(self._init_network(name, key)),
          out_shardings=placed[kind[0]],
          compiler_options=options,
        )
      )
      params |= {name: draw(keys[name]) for name in kind}
    return params

  def init(self) -> State:
    """A new state from the config's seed, each array made where it lives."""
    placed = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    around = jax.jit(
      self._around, static_argnums=1, donate_argnums=0, out_shardings=placed
    )
    return self.in_mesh(around)(self._initial_params(), self.config.seed)

  @functools.cached_property
  def boxed_params(self) -> dict[str, Any]:
    """Shapes of the weights, with the logical names of their axes."""
    with sharding.mesh_context(self.mesh):
      return jax.eval_shape(functools.partial(self._init_params, 0))

  @functools.cached_property
  def abstract_state(self) -> State:
    """Shapes, types and shardings of the state, with nothing computed."""
    with sharding.mesh_context(self.mesh):
      shapes = jax.eval_shape(functools.partial(self.fresh, 0))
    params = sharding.param_shardings(self.boxed_params, self.mesh)
    placed = jax.tree.map(lambda _: sharding.replicated(self.mesh), shapes)
    groups = {
      'generators': updates.pick(params, cyclegan.GENERATORS),
      'discriminators': updates.pick(params, cyclegan.DISCRIMINATORS),
    }
    opt_state = {
      group: sharding.opt_state_shardings(
        self.tx, shapes.opt_state[group], placements, self.mesh
      )
      for group, placements in groups.items()
    }
    placed = placed.replace(
      params=params,
      opt_state=opt_state,
      pools=pools.shardings(shapes.pools, self.mesh),
    )
    return jax.tree.map(_abstract, shapes, placed)

  @functools.cached_property
  def abstract_weights(self) -> dict[str, Any]:
    """The generators of a state, which is all that `variables` needs."""
    placed = sharding.param_shardings(self.boxed_params, self.mesh)
    params = jax.tree.map(_abstract, nn.unbox(self.boxed_params), placed)
    return {'params': updates.pick(params, cyclegan.GENERATORS)}

  def variables(self, weights: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The generators' parameters by name, and what they are: 'params'."""
    return updates.pick(weights['params'], cyclegan.GENERATORS), 'params'

  def with_pretrained(self, state: State, path: str) -> State:
    """The state with all four networks of another translation.

    Args:
      state: a new one.
      path: that run's workdir; its newest checkpoint counts.
    """
    params = starts.networks(path, self.abstract_state.params)
    return state.replace(params=params)

  # --- Training ------------------------------------------------------------

  @property
  def signal_names(self) -> list[str]:
    """What the detector remembers of each step, in order."""
    return [*diagnostics.JUDGED, *_NORMS]

  @property
  def diagnostic_names(self) -> list[str]:
    """The columns of diagnostics.csv after `step`."""
    per_network = _NORMS if self.config.diagnostics.per_layer else ()
    return [*diagnostics.COLUMNS, *per_network]

  @property
  def scalar_names(self) -> list[str]:
    """Names of the entries of the vector that `train_step` returns."""
    return [
      *diagnostics.COLUMNS,
      *_NORMS,
      *self.logged,
      'train/learning_rate',
      *diagnostics.VERDICT,
    ]

  def train_iterator(self) -> devices.DeviceIterator:
    """Endless training batches on the devices, from the first one on."""
    data, placed = self.config.data, sharding.batch_sharding(self.mesh)
    return devices.DeviceIterator(
      pipeline.pair_iterator(
        self.data.train,
        batch_size=self.config.batch_size,
        seed=self.config.seed,
        pairing=data.pairing,
        workers=data.workers,
        rows=devices.local_rows(placed, self.config.batch_size),
      ),
      placed,
    )

  @property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What `train_iterator` gives, in shape.

    Images that are cropped but not resized may come larger than this.
    """
    data = self.config.data
    resized = data.preprocess == 'resize_and_crop'
    side = data.load_size if resized else data.image_size
    shape = (self.config.batch_size, side, side, 3)
    images = jax.ShapeDtypeStruct(
      shape, jnp.uint8, sharding=sharding.batch_sharding(self.mesh)
    )
    return {'a': images, 'b': images}

  def step(
    self, state: State, batch: dict[str, UInt8[Array, 'B h w 3']]
  ) -> tuple[State, Float[Array, 'M']]:
    """One training step; traced by `train_step`.

    Args:
      state: before the step.
      batch: images of `a` and `b`.
    """
    done = self._updates(state, batch)
    grads, seen = done.grads, done.seen
    finite = updates.all_finite(grads)
    loss_scale, overflow = state.loss_scale, jnp.asarray(False)
    if loss_scale is not None:
      loss_scale = updates.rescaled(loss_scale, finite)
      overflow = ~finite & jnp.isfinite(seen['loss'])

    row = diagnostics.measure(
      loss=seen['loss'],
      max_logit=seen['max_score'],
      grads=grads,
      updates=done.updates,
      params=state.params,
      clip_norm=self.config.optim.clip_norm,
    )
    row['clipped_grad_norm'] = self._clipped_norm(grads)
    row |= {f'grad_norm/{k}': optax.tree.norm(g) for k, g in grads.items()}
    signals = jnp.stack([row[name] for name in self.signal_names])
    monitor, verdict = diagnostics.observe(
      state.monitor, signals, seen['loss'], state.step, overflow, self.detector
    )

    row |= {f'train/{name}': seen[name] for name in self.networks.terms}
    row['train/learning_rate'] = self._schedule(
      optim.steps_taken(state.opt_state['generators'])
    )
    row |= diagnostics.verdict_row(verdict, monitor)
    state = state.after(
      verdict,
      monitor,
      loss_scale,
      params=jax.tree.map(jnp.add, state.params, done.updates),
      opt_state=done.opt_state,
      pools=done.pools,
    )
    return state, jnp.stack([row[name] for name in self.scalar_names])

  def _clipped_norm(self, grads: dict[str, Any]) -> Float[Array, '']:
    """Of all gradients; each optimiser clips its own."""
    clip = self.config.optim.clip_norm or jnp.inf
    groups = (cyclegan.GENERATORS, cyclegan.DISCRIMINATORS)
    norms = [optax.tree.norm(updates.pick(grads, names)) for names in groups]
    return jnp.linalg.norm(jnp.minimum(jnp.stack(norms), clip))

  def _images(
    self, batch: dict[str, UInt8[Array, 'B h w 3']], key: jax.Array
  ) -> cyclegan.Images:
    """Random crops and mirror images in [-1, 1]."""
    data = self.config.data
    crop = functools.partial(
      augment.crop_and_flip, size=(data.image_size,) * 2, flip=data.flip
    )
    keys = jax.random.split(key)
    return {
      domain: augment.to_signed(crop(k, batch[domain]))
      for k, domain in zip(keys, 'ab', strict=True)
    }

  def _updates(self, state: State, batch: dict[str, Array]) -> updates.Updates:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    image_key, key = jax.random.split(key)
    return updates.both(
      state,
      self.networks,
      self.tx,
      self._images(batch, image_key),
      key,
      first=self.config.optim.first,
      mesh=self.mesh,
    )

  def locate_nonfinite(self, state: State, batch: dict[str, Array]) -> str:
    """Which image, score or gradient of the step on `batch` isn't finite."""

    def passes(state, batch):
      done = self._updates(state, batch)
      forward = {**done.made, **done.seen}
      backward = {f'the gradient of {k}': v for k, v in done.grads.items()}
      # A dict would come back sorted: forward order, then backward.
      return [
        updates.all_finite(x) for x in (*forward.values(), *backward.values())
      ], names.extend((*forward, *backward))

    names: list[str] = []
    flags, _ = jax.device_get(self.in_mesh(jax.jit(passes))(state, batch))
    found = [n for n, ok in zip(names, flags, strict=True) if not ok]
    return found[0] if found else 'the update'

  # --- Use -----------------------------------------------------------------

  @functools.cached_property
  def translate(self):
    """(generators, images uint8 [B, H, W, 3], direction) -> uint8, jitted.

    The direction is 'a2b' or 'b2a'. A ViTUnet takes images of
    `data.image_size`, a ResNet all whose height and width 4 divides.
    """

    rounded = jax.jit(
      lambda images: jnp.round(images).astype(jnp.uint8),
      out_shardings=sharding.replicated(self.mesh),
    )

    def translate(variables, images, direction):
      return rounded(self._translated(variables, images, direction))

    return self.in_mesh(translate)

  def sample(self, state: State, run: workdir_lib.Workdir) -> None:
    """Writes samples/DIRECTION_STEP.png: real, translated and back again."""
    variables, _ = self.variables(vars(state))
    step = int(state.step)
    for direction, (source, _) in image_sources.DIRECTIONS.items():
      real = self._sample_images[source]
      made = self.translate(variables, real, direction)
      back = self.translate(variables, made, direction[::-1])
      samples.write(run, f'samples/{direction}', step, [real, made, back])

  @functools.cached_property
  def _sample_images(self) -> dict[str, UInt8[np.ndarray, 'N H W 3']]:
    """The same images of each domain every time, from all over its val part."""

    def chosen(split):
      count = min(self.config.log.num_samples, len(split))
      rows = np.linspace(0, len(split) - 1, count).round().astype(int)
      return np.stack([split[int(row)]['image'] for row in rows])

    return {domain: chosen(getattr(self.data.val, domain)) for domain in 'ab'}

  # --- Results -------------------------------------------------------------

  @functools.cached_property
  def _quality(self) -> quality.Quality:
    return quality.Quality(
      self.config.fid, self.mesh, self._batches, self._translated
    )

  def _batches(self, split: splits.Split) -> quality.Batches:
    """Every image of a split, once, on the devices."""
    placed = sharding.batch_sharding(self.mesh)
    batches = pipeline.eval_batches(
      split,
      batch_size=self.eval_batch_size,
      workers=self.config.data.workers,
      rows=devices.local_rows(placed, self.eval_batch_size),
    )
    for batch in batches:
      yield devices.place(batch, placed)

  @functools.cached_property
  def _translated(self):
    """As `translate`, but float32 in [0, 255], for `fid.quantize` to round."""

    @jax.jit  # one program for both directions
    def apply(params, images):
      made = self.networks.generator.apply(
        {'params': params}, augment.to_signed(images), train=False
      )
      return (made + 1) * 127.5

    def translated(variables, images, direction):
      name = 'gen_' + ''.join(image_sources.DIRECTIONS[direction])
      return apply(variables[name], images)

    return self.in_mesh(translated)

  @property
  def _last_part(self) -> tuple[str, catalog.Pair]:
    """What the final evaluation is on: test, or val where there is none."""
    name = 'test' if self.data.test is not None else 'val'
    return name, getattr(self.data, name)

  def prepare(self) -> None:
    """Judges the mesh, and fetches Inception's weights, before the training."""
    super().prepare()
    self._quality.load_weights()

  @property
  def model(self) -> Any:
    """The generator of both directions, each with its own parameters."""
    return self.networks.generator

  @property
  def validation_note(self) -> str:
    """Distances by weights that aren't the public ones are called so."""
    return '' if self._quality.facts['calibrated'] else ' (uncalibrated)'

  def generated(
    self, variables: dict[str, Any], direction: str
  ) -> quality.Batches:
    """What a generator makes of the test part: float images in [0, 255].

    Args:
      variables: the generators' parameters.
      direction: 'a2b' or 'b2a'.
    """
    source, _ = image_sources.DIRECTIONS[direction]
    for batch in self._batches(getattr(self._last_part[1], source)):
      images = self._translated(variables, batch['image'], direction)
      yield {'image': images, 'mask': batch['mask']}

  def validate(
    self, variables: dict[str, Any], check: Callable[[], None]
  ) -> dict[str, float]:
    """`fid kid` of the val part, by direction and in the mean."""
    values = self._quality.of(variables, self.data.val, check)
    return {
      k: v
      for k, v in values.items()
      if k.startswith(('fid', 'kid')) and 'stderr' not in k
    }

  def final(
    self,
    variables: dict[str, Any],
    run: workdir_lib.Workdir,
    check: Callable[[], None] = lambda: None,
  ) -> dict[str, Any]:
    """Evaluates on the test part, or on val where there is none.

    Args:
      variables: the generators' parameters.
      run: nothing is written beside the result.
      check: called between batches; may raise to leave the evaluation.

    Returns:
      `split`; distances and `num_a num_b` as `quality.Quality.of` gives them;
      distances of generators that change nothing (`identity_...`) and of those
      that the seed draws (`untrained_...`); and what the distances are to be
      reported with.
    """
    del run
    name, pair = self._last_part
    untrained, _ = self.variables({'params': self._initial_params()})
    anchors = {
      'identity': self._quality.identity(pair, check),
      'untrained': self._quality.of(untrained, pair, check),
    }
    found = self._quality.of(variables, pair, check)
    counts = {key: found.pop(key) for key in ('num_a', 'num_b')}
    return {
      'split': name,
      **counts,
      **found,
      **{f'{k}_{n}': x[n] for k, x in anchors.items() for n in found},
      **self._quality.facts,
    }

  @staticmethod
  def summary(result: dict[str, Any]) -> str:
    """The content of eval.json in words."""
    calibrated = '' if result['calibrated'] else ', uncalibrated'
    lines = [
      f'Result on the {result["split"]} part ({result["num_a"]} and '
      f'{result["num_b"]} images; weights of step {result["step"]}; tap '
      f'{result["tap"]}, {result["resize"]}, {result["quantize"]}'
      f'{calibrated}):'
    ]
    for direction in image_sources.DIRECTIONS:
      fid, identity, untrained = (
        result[f'{prefix}fid_{direction}']
        for prefix in ('', 'identity_', 'untrained_')
      )
      kid = result[f'kid_{direction}']
      lines.append(
        f'  {direction}: FID {fid:.4g}, KID {kid:.4g} (FID of the untranslated '
        f'images {identity:.4g}, of the untrained generator {untrained:.4g})'
      )
    return '\n'.join(lines)


def _sharing(mesh: jax.sharding.Mesh, batch_size: int) -> jax.sharding.Mesh:
  """The mesh, or the part of it whose devices can share a batch evenly.

  Several processes have to take part with all their devices.
  """
  data, fsdp = mesh.shape[sharding.DATA], mesh.shape[sharding.FSDP]
  if jax.process_count() > 1 or batch_size % fsdp:
    return mesh
  images = batch_size // fsdp
  part = max(n for n in range(1, data + 1) if images % n == 0)
  if part == data:
    return mesh
  devices = mesh.devices[:part]  # `data` is the first axis
  return jax.sharding.Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)


def _init_keys(seed: int) -> dict[str, jax.Array]:
  """A key for each network, and one for the steps."""
  names = (*cyclegan.NETWORKS, 'step')
  keys = jax.random.split(jax.random.key(seed), len(names))
  return dict(zip(names, keys, strict=True))


def _abstract(x: Any, placed: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
