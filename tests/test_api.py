"""The package from Python: modules by name, models of runs without data."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit22b_jax
from configs import folder
from tests.helpers import data_fixtures
from vit22b_jax import api, commands, errors
from vit22b_jax.modes import evaluate


def test_create_gives_a_module_by_name():
  model = vit22b_jax.create(
    'vit22b', variant='Ti', num_classes=7, patch_size=8, depth=2, pool='mean'
  )
  assert (model.depth, model.width, model.num_heads) == (2, 192, 3)
  images = jax.ShapeDtypeStruct((3, 24, 40, 3), jnp.float32)
  logits, variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x), images
  )
  assert logits.shape == (3, 7) and logits.dtype == jnp.float32
  blocks = [name for name in variables['params'] if name.startswith('block_')]
  assert blocks == ['block_00', 'block_01']


def test_create_by_default_is_imagenet_sized():
  model = vit22b_jax.create()
  assert (model.num_classes, model.patch_size, model.width) == (1000, 16, 384)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'block': 'vit23b'}, 'vit22b'),
    ({'variant': 's'}, 'S'),
    ({'num_heads': 5}, 'num_heads=5'),
  ],
)
def test_create_names_what_is_wrong(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    vit22b_jax.create(**arguments)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run on a data folder that has been deleted since."""
  root = tmp_path_factory.mktemp('run')
  data = data_fixtures.make_folder(
    root / 'data', counts={'train': 10, 'test': 3}
  )
  config = folder.get_config('tiny')
  config.log.tensorboard = False
  config.data.name = f'folder:{data}'
  config.data.image_size = 16
  config.optim.ema = 0.5
  workdir = root / 'workdir'
  assert commands.run('train', config=config, workdir=str(workdir)) == 0
  shutil.rmtree(data)
  return workdir


def test_load_gives_the_model_of_a_run_without_its_data(run):
  model, variables = vit22b_jax.load(run)
  config = json.loads((run / 'config.json').read_text())['data']
  with np.load(run / 'predictions.npz') as file:
    images, expected = file['images'], file['probabilities']
  images = (images / 255 - config['mean']) / config['std']
  logits = jax.jit(model.apply)(variables, jnp.asarray(images, jnp.float32))
  assert expected.shape == (9, 3)
  np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)


def test_load_gives_the_averaged_weights_of_the_best_step(run):
  step = json.loads((run / 'eval.json').read_text())['step']
  config = api.read_config(run)
  task, manager = api.open_run(run, config)
  weights = manager.restore(task.abstract_weights, step=step).state
  _, variables = vit22b_jax.load(run)
  jax.tree.map(
    np.testing.assert_array_equal, variables['params'], weights['ema']
  )
  manager.close()


def test_a_run_opens_where_devices_do_not_divide_its_batches(run):
  config = api.read_config(run)
  config.batch_size = 12
  config.optim.accumulate = 2
  config.eval.batch_size = 10
  task, manager = api.open_run(run, config)
  assert jax.device_count() == 8 and task.mesh.size == 2
  assert evaluate.restore(task, manager, 'last')[0] == 4
  manager.close()


def test_load_says_what_is_missing(run, tmp_path):
  with pytest.raises(errors.UserError, match='not the folder of a run'):
    vit22b_jax.load(tmp_path)
  for name in ('config.json', 'classes.json'):
    shutil.copy(run / name, tmp_path / name)
  with pytest.raises(errors.UserError, match='There is no checkpoint'):
    vit22b_jax.load(tmp_path)
  assert not (tmp_path / 'checkpoints').exists()
