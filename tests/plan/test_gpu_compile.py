"""What runs on NVIDIA GPUs compiles for an H100, on a machine without one.

Tiny sizes, one compilation each. Needs the extra `plan-gpu`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_vit22b_ti, fruit_vitunet_ti, vit22b_22b
from tests.models import test_blocks
from vit22b_jax.fid import extractor
from vit22b_jax.models import blocks, kernels
from vit22b_jax.plan import (
  gpu_targets,
  hlo,
  planner,
  roofline,
  topologies,
)
from vit22b_jax.runtime import chips, sharding
from vit22b_jax.tasks import cyclegan_update

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    gpu_targets.plugin_version() is None,
    reason=f"jax's CUDA plugin is missing: {gpu_targets.INSTALL}",
  ),
]

B, L, D, N, F = 3, 13, 32, 2, 48
H100 = chips.named('h100')
FORWARD, BACKWARD = '"__cudnn$fmhaSoftmax"', '"__cudnn$fmhaSoftmaxBackward"'


def changed(config, **keys):
  """A config with other values, by keys with __ in place of dots."""
  keys = {key.replace('__', '.'): value for key, value in keys.items()}
  config.update_from_flattened_dict(keys)
  return config


@pytest.fixture
def compile_step(monkeypatch):
  """Plans a config for H100s: (plan, the compiled program's text)."""
  texts = []
  compile_for = topologies.compile_for

  def recorded(device, lowered):
    compiled = compile_for(device, lowered)
    texts.append(compiled.as_text())
    return compiled

  monkeypatch.setattr(topologies, 'compile_for', recorded)

  def run(config, topology='h100:1', least=1):
    plan = planner.plan(config, topologies.find(topology))
    assert plan['fits']
    assert plan.get('not_predicted') is None
    done = plan['hardware_flops_per_device']
    assert done > least * plan['model_flops_per_device']
    (text,) = texts
    return plan, text

  return run


def compile_gradient(loss, variables, shape, dtype):
  """Compiles the gradient of a loss (*variables, x); returns the program."""
  devices = gpu_targets.devices('h100')
  mesh = sharding.make_mesh('data', devices=devices)

  def placed(a):
    whole = sharding.replicated(mesh)
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole)

  x = placed(jax.ShapeDtypeStruct(shape, dtype))
  with sharding.mesh_context(mesh):  # where nothing can be computed
    shapes = jax.eval_shape(lambda x: nn.unbox(variables(x)), x)
    given = jax.tree.map(placed, shapes)
    argnums = tuple(range(len(given) + 1))
    lowered = jax.jit(jax.grad(loss, argnums)).lower(*given, x)
  return topologies.compile_for(devices[0], lowered).as_text()


# --- Blocks ------------------------------------------------------------------


@pytest.mark.parametrize(
  ('dtype', 'attention'),
  [
    ('float32', 'xla'),
    ('bfloat16', 'xla'),
    ('bfloat16', 'cudnn'),
    ('float16', 'xla'),
    ('float16', 'cudnn'),
  ],
)
def test_each_block(dtype, attention):
  """Forward and backward, of an odd number of tokens; one program of all."""
  made = {
    preset: test_blocks.make(
      preset,
      width=D,
      num_heads=N,
      mlp_dim=F,
      dtype=dtype,
      attention=attention,
      precision='default',
    )
    for preset in blocks.PRESETS
  }

  def loss(params, x):
    outputs = [block.apply(params[p], x)[0] for p, block in made.items()]
    return jnp.square(jnp.stack(outputs).astype(jnp.float32)).sum()

  def variables(x):
    key = jax.random.key(0)
    return ({p: block.init(key, x) for p, block in made.items()},)

  text = compile_gradient(loss, variables, (B, L, D), dtype)
  calls = len(made) if attention == 'cudnn' else 0
  assert text.count(FORWARD) == text.count(BACKWARD) == calls
  work = roofline.measure(hlo.parse(text), {'data': 1}, H100)
  products = len(made) * 3 * 2 * B * L * (4 * D**2 + 2 * D * F)
  # As small as these, XLA may write some without a product.
  attended = len(made) * 6 * 2 * B * L**2 * D
  assert 0.9 * products < work.flops < 1.2 * (products + attended)


# --- Steps of training -------------------------------------------------------


@pytest.mark.parametrize(
  'keys',
  [
    {'optim__accumulate': 2, 'optim__ema': 0.9, 'diagnostics__per_layer': True},
    {'model__pool': 'mean', 'loss__kind': 'sigmoid', 'data__augment': 'strong'},
    {'model__pool': 'map'},
  ],
  ids=['cls_accumulated', 'mean_sigmoid_strong', 'map'],
)
def test_pools_and_recipes(keys, compile_step):
  """At 65, 64 and 64 tokens, odd and even ones."""
  config = digits_vit22b_ti.get_config('tiny')
  keys |= {'model__dtype': 'bfloat16', 'model__attention': 'auto'}
  _, text = compile_step(changed(config, model__patch_size=1, **keys))
  # What diagnostics look at is XLA's attention.
  assert (BACKWARD in text) != ('diagnostics__per_layer' in keys)


def test_a_penalty_takes_a_second_derivative(compile_step):
  config = digits_vit22b_ti.get_config('tiny')
  keys = {'model__dtype': 'float16', 'loss__input_gradient_penalty': 0.1}
  compile_step(changed(config, **keys))


@pytest.mark.parametrize(
  ('remat', 'scan'),
  [('none', False), ('projections', True), ('hidden', False), ('full', True)],
)
def test_remat_and_scan(remat, scan, compile_step):
  config = changed(
    digits_vit22b_ti.get_config('tiny'),
    model__depth=3,
    model__remat=remat,
    model__scan_layers=scan,
    model__dtype='bfloat16',
    model__attention='auto',
  )
  plan, text = compile_step(config)
  assert text.count(BACKWARD) == (1 if scan else 3)
  if remat == 'none':
    assert text.count(FORWARD) == text.count(BACKWARD)
  recomputed = plan['recomputed_flops_per_device']
  if remat in ('hidden', 'full'):
    assert recomputed > 0.1 * plan['model_flops_per_device']


@pytest.mark.parametrize('preset', ['fsdp', 'fsdp+tensor'])
def test_eight_gpus(preset, compile_step):
  """The full size's recipe, narrow; gathers and sums over the right axes."""
  config = changed(
    vit22b_22b.get_config('tiny'),
    model__depth=2,
    model__width=64,
    sharding=preset,
    mesh__max_replicated=1e9,
    model__attention='auto',
  )
  plan, text = compile_step(config, 'h100:8')
  assert BACKWARD in text
  sent = {(c['kind'], c['axes']) for c in plan['collectives']}
  assert ('all-gather', 'fsdp') in sent
  assert any(kind in ('reduce-scatter', 'all-reduce') for kind, _ in sent)
  assert ('tensor' in {axes for _, axes in sent}) == ('tensor' in preset)


@pytest.mark.parametrize(
  ('word', 'keys'),
  [
    ('tiny', {'model__resample': 'space'}),
    ('tiny', {'model__resample': 'channels', 'model__dtype': 'bfloat16'}),
    ('resnet,tiny', {'discriminator__name': 'patchgan70'}),
    ('resnet,tiny', {'discriminator__name': 'released'}),
  ],
  ids=['space', 'channels', 'resnet', 'resnet_released'],
)
def test_networks_of_a_translation(word, keys):
  """A discriminator's loss of what a generator makes, forward and backward."""
  config = changed(fruit_vitunet_ti.get_config(word), **keys)
  networks = cyclegan_update.build_networks(config)

  def made(generator, x):
    return networks.generator.apply(generator, x, train=False)

  def loss(generator, discriminator, x):
    scores = networks.discriminator.apply(discriminator, made(generator, x))
    return jnp.square(scores.astype(jnp.float32)).sum()

  def variables(x):
    generator = networks.generator.init(jax.random.key(0), x, train=False)
    return generator, networks.discriminator.init(jax.random.key(0), x)

  text = compile_gradient(loss, variables, (2, 32, 32, 3), 'float32')
  assert '__cudnn$convForward' in text
  assert '__cudnn$convBackwardInput' in text
  assert '__cudnn$convBackwardFilter' in text


def test_a_step_of_a_translation(compile_step):
  """Both updates, pools of images, and half of everything's size."""
  config = changed(
    fruit_vitunet_ti.get_config('resnet,tiny'),
    loss__lambda_identity=0.0,
    model__dtype='float16',
  )
  # Kernels of 4 reach far over the borders of maps as small as these.
  _, text = compile_step(config, least=0.5)
  assert '__cudnn$convBackwardFilter' in text


# --- Steps of evaluation and of use ------------------------------------------


def lower_on_gpu(config, program, **images):
  """Compiles a program of a task, given its weights and images by name."""
  devices = gpu_targets.devices('h100')
  mesh = sharding.make_mesh('data', devices=devices)
  task = planner.make_task(config, mesh)
  arrays = {
    name: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.replicated(mesh)
    )
    for name, x in images.items()
  }
  variables, _ = task.variables(task.abstract_weights)
  with sharding.mesh_context(mesh):
    lowered = program(task, variables, arrays)
  return topologies.compile_for(devices[0], lowered).as_text()


@pytest.mark.parametrize('step', ['_step', '_probabilities'])
def test_evaluation_and_prediction(step):
  config = digits_vit22b_ti.get_config('tiny')
  config = changed(config, model__dtype='bfloat16', model__attention='cudnn')
  batch = {'image': np.zeros((8, 8, 8, 3), np.uint8)}
  if step == '_step':
    batch |= {'label': np.zeros(8, np.int32), 'index': np.zeros(8, np.int32)}
    batch['mask'] = np.zeros(8, np.float32)

  def program(task, variables, arrays):
    given = arrays if step == '_step' else arrays['image']
    return getattr(task.evaluator, step).lower(variables, given)

  text = lower_on_gpu(config, program, **batch)
  assert FORWARD in text and BACKWARD not in text


def test_translation_of_images():
  text = lower_on_gpu(
    fruit_vitunet_ti.get_config('tiny'),
    lambda task, variables, arrays: task._generate.lower(
      variables['gen_ab'], arrays['image']
    ),
    image=np.zeros((2, 32, 32, 3), np.uint8),
  )
  assert '__cudnn$convForward' in text


# --- Inception ---------------------------------------------------------------


def test_inception():
  """In float32 at the highest precision, as FID compares features."""
  (device, *_) = gpu_targets.devices('h100')
  settings = extractor.Settings('random:0', tap=2048)
  features = extractor.Extractor(settings, 2)
  images = jax.ShapeDtypeStruct(
    (2, 299, 299, 3),
    np.float32,
    sharding=jax.sharding.SingleDeviceSharding(device),
  )
  params = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=images.sharding),
    features._params,
  )
  model = extractor.inception.Inception(('2048',))
  with jax.set_mesh(sharding.make_mesh('data', devices=[device])):
    assert kernels.platform() == 'gpu'
    lowered = jax.jit(model.apply).lower({'params': params}, images)
  text = topologies.compile_for(device, lowered).as_text()
  # Those with kernels of one pixel are plain products.
  assert text.count('__cudnn$conv') >= 40
  assert text.count('__cublas$') >= 30
  work = roofline.measure(hlo.parse(text), {'data': 1}, H100)
  assert 2 * 10e9 < work.flops < 2 * 13e9  # 5.7 billion products an image
