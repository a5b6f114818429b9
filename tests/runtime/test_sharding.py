"""Meshes by name, and weights that an axis should split and doesn't."""

import jax
import pytest

from configs import cifar100_vit22b_ti, common, digits_vit22b_ti
from configs import fruit_vitunet_ti as fruit
from tests.helpers import golden_shardings
from vit22b_jax import errors, tasks
from vit22b_jax.runtime import sharding


@pytest.mark.parametrize(
  ('preset', 'sizes', 'expected'),
  [
    ('data', {}, (8, 1, 1)),
    ('fsdp', {}, (1, 8, 1)),
    ('fsdp+tensor', {}, (1, 4, 2)),
    ('fsdp+tensor', {'tensor': 4}, (1, 2, 4)),
    ('fsdp', {'data': 2}, (2, 4, 1)),
    ('data', {'fsdp': 2, 'tensor': 2}, (2, 2, 2)),
    ('fsdp+tensor', {'data': -1, 'fsdp': 2}, (2, 2, 2)),
  ],
)
def test_presets_fill_the_devices_and_sizes_override(preset, sizes, expected):
  mesh = sharding.make_mesh(preset, **sizes)
  assert tuple(mesh.shape[axis] for axis in sharding.AXES) == expected


@pytest.mark.parametrize(
  ('preset', 'sizes', 'message'),
  [
    ('fsdp', {'data': -1}, 'one at most may be -1'),
    ('data', {'tensor': 3}, r'8 devices: 8 must be a multiple of 3'),
    ('fsdp', {'fsdp': 4}, r"sharding='fsdp' with mesh.data=1, mesh.fsdp=4"),
  ],
)
def test_what_is_no_mesh_is_explained(preset, sizes, message):
  with pytest.raises(errors.UserError, match=message):
    sharding.make_mesh(preset, **sizes)


def task(config, **sizes):
  """A task without data; nothing is computed."""
  config.batch_size, config.eval.batch_size = 8, 8
  names = [str(i) for i in range(10)]
  mesh = sharding.make_mesh(**sizes)
  return tasks.TASKS[config.task](config, mesh, names)


@pytest.mark.parametrize('preset', sharding.PRESETS)
@pytest.mark.parametrize(
  'config',
  [
    digits_vit22b_ti.get_config('tiny'),
    cifar100_vit22b_ti.get_config('paper'),
    fruit.get_config('tiny'),
    fruit.get_config(),
  ],
)
def test_nothing_is_said_of_what_is_expected(config, preset):
  narrow = config.model.variant == 'Ti' and config.model.num_heads is None
  if preset == 'fsdp+tensor' and narrow:
    with pytest.raises(errors.UserError, match='3 heads over tensor=2'):
      task(config, preset=preset).validate_sharding()
    return
  text = task(config, preset=preset).validate_sharding()
  # The last layer of a PatchGAN has one channel.
  assert ('conv_4/kernel' in text) == ('discriminator' in config) * (
    preset != 'data'
  )
  assert len(text) < 500


def test_heads_that_do_not_divide_are_refused_with_a_list():
  config = cifar100_vit22b_ti.get_config()
  with pytest.raises(errors.UserError) as caught:
    task(config, fsdp=2, tensor=2).validate_sharding()
  message = str(caught.value)
  assert '99% of the weights' in message
  assert 'block_00/in_proj/kernel [192, 3, 448]: 3 heads over tensor=2' in (
    message
  )
  assert 'and 4 more' in message
  assert 'bias' not in message
  config.mesh.max_replicated = 1.0
  assert task(config, fsdp=2, tensor=2).validate_sharding().startswith('99.26%')


def test_a_matrix_without_an_axis_for_fsdp_is_left_whole():
  import flax.linen as nn

  def boxed(names, shape):
    array = jax.ShapeDtypeStruct(shape, 'float32')
    return {'kernel': nn.LogicallyPartitioned(array, names)}

  tree = {
    'good': boxed(('embed', 'classes'), (16, 10)),
    'lost': boxed(('patch', 'position'), (12, 5)),
    'small': {'scale': nn.LogicallyPartitioned(tree_leaf(), ('norm',))},
  }
  mesh = sharding.make_mesh(fsdp=4)
  assert list(sharding.find_unsharded(tree, mesh)) == [
    'lost/kernel [12, 5]: no axis of it goes over fsdp=4'
  ]
  assert sharding.find_unsharded(tree, sharding.make_mesh()) == {}


def tree_leaf():
  return jax.ShapeDtypeStruct((7,), 'float32')


@pytest.mark.parametrize('case', golden_shardings.CASES)
def test_states_are_split_as_the_golden_files_say(case):
  """To change them: python -m tests.helpers.golden_shardings, then git diff."""
  golden = (golden_shardings.FOLDER / f'{case}.txt').read_text()
  assert golden_shardings.text(case) == golden


def test_the_batch_has_to_divide():
  config = common.finish(common.classification(), 'tiny')
  config.batch_size = 12
  with pytest.raises(errors.UserError, match='multiple of 8, such as 16'):
    tasks.TASKS['classification'](config, sharding.make_mesh(), ['a', 'b'])
