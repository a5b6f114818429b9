"""The package from Python: modules by name, models of runs without data."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit22b_jax
from configs import common, folder
from tests.helpers import data_fixtures
from vit22b_jax import api, commands, errors, train
from vit22b_jax import config as config_lib
from vit22b_jax.models import vit
from vit22b_jax.modes import evaluate, export
from vit22b_jax.runtime import runs


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
  assert train.run(config, workdir, commands.make_mesh(config)) == 0
  shutil.rmtree(data)
  return workdir


def test_load_gives_the_model_of_a_run_without_its_data(run):
  predictor = vit22b_jax.load(run)
  model, variables = predictor.model, predictor.variables
  config = json.loads((run / 'config.json').read_text())['data']
  with np.load(run / 'predictions.npz') as file:
    images, expected = file['images'], file['probabilities']
  images = (images / 255 - config['mean']) / config['std']
  logits = jax.jit(model.apply)(variables, jnp.asarray(images, jnp.float32))
  assert expected.shape == (9, 3)
  np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)


def test_load_gives_the_averaged_weights_of_the_best_step(run):
  step = json.loads((run / 'eval.json').read_text())['step']
  config = runs.read_config(run)
  task, manager = api.open_run(run, config)
  weights = manager.restore(task.abstract_weights, step=step).state
  assert 'params' not in weights  # which nobody would use
  variables = vit22b_jax.load(run).variables
  jax.tree.map(
    np.testing.assert_array_equal, variables['params'], weights['ema']
  )
  manager.close()


def test_a_run_opens_where_devices_do_not_divide_its_batches(run):
  config = runs.read_config(run)
  config.batch_size = 12
  config.optim.accumulate = 2
  config.eval.batch_size = 10
  task, manager = api.open_run(run, config)
  assert jax.device_count() == 8 and task.mesh.size == 2
  assert evaluate.restore(task, manager, 'last')[0] == 4
  manager.close()


@pytest.mark.parametrize(
  ('keys', 'shape'),
  [
    ({'sharding': 'fsdp', 'batch_size': 16}, (1, 8, 1)),
    ({'sharding': 'fsdp', 'mesh.fsdp': 64, 'batch_size': 16}, (1, 8, 1)),
    ({'mesh.fsdp': 2, 'mesh.tensor': 2, 'batch_size': 2}, (1, 2, 2)),
    ({'sharding': 'fsdp', 'batch_size': 6}, (6, 1, 1)),
  ],
)
def test_a_run_opens_split_as_it_was_trained(run, keys, shape):
  config = runs.read_config(run)
  config.eval.batch_size = None
  config.update_from_flattened_dict(keys)
  task, manager = api.open_run(run, config)
  assert tuple(task.mesh.shape.values()) == shape
  variables = evaluate.restore(task, manager, 'last')[1]
  wanted = jax.tree.leaves(task.param_shardings)
  found = [x.sharding for x in jax.tree.leaves(variables['params'])]
  assert found == wanted
  manager.close()


def test_load_says_what_is_missing(run, tmp_path):
  with pytest.raises(errors.UserError, match='not a workdir'):
    vit22b_jax.load(tmp_path)
  for name in ('config.json', 'classes.json'):
    shutil.copy(run / name, tmp_path / name)
  with pytest.raises(errors.UserError, match='There is no checkpoint'):
    vit22b_jax.load(tmp_path)
  assert not (tmp_path / 'checkpoints').exists()


# --- Predictor -------------------------------------------------------------


@pytest.fixture(scope='module')
def predictor(run):
  return vit22b_jax.load(run)


def test_predictions_are_those_of_the_evaluation(run, predictor):
  assert predictor.class_names == ('bird', 'cat', 'dog')
  with np.load(run / 'predictions.npz') as file:
    images, expected = file['images'], file['probabilities']
  found = predictor.predict(images)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(predictor.predict(images[0]), found[:1], atol=1e-6)
  listed = [images[0], images[1:3]]
  np.testing.assert_allclose(predictor.predict(listed), found[:3], atol=1e-6)


@pytest.mark.parametrize('share', [None, 0.7])
def test_an_image_is_cut_as_the_evaluation_cuts_it(run, tmp_path, share):
  config = runs.read_config(run)
  config.data.load_size, config.data.eval_crop = 24, share
  shutil.copytree(run, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'config.json').write_text(config_lib.to_json(config))
  task, manager = api.open_run(tmp_path, config)
  _, variables, _ = evaluate.restore(task, manager, 'best')
  manager.close()
  images = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), np.uint8)
  expected = task.evaluator.predict(variables, images)
  predictor = vit22b_jax.load(tmp_path)
  found = predictor.predict(images)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert predictor.predict(images[:3]).shape == (3, found.shape[1])
  assert predictor._cut._cache_size() == 1  # whatever the number of images
  assert export.describe(task)['eval_crop'] == share


def test_maps_are_those_of_the_evaluation(run, predictor):
  with np.load(run / 'attention.npz') as file:
    images, last, rollout = (file[k] for k in ('images', 'last', 'rollout'))
  blocks = predictor.attention(images).mean(2)
  expected = blocks[:, -1, 0, 1:].reshape(last.shape)
  np.testing.assert_allclose(last, expected, atol=1e-6)
  product = eye = np.eye(blocks.shape[-1])
  for block in blocks.swapaxes(0, 1):
    product = (0.5 * block + 0.5 * eye) @ product
  expected = product[:, 0, 1:].reshape(rollout.shape)
  np.testing.assert_allclose(rollout, expected, atol=1e-6)


def test_files_of_any_size_and_kind_are_predicted(predictor, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  Image.fromarray(pixels).convert('L').resize((40, 30)).save(tmp_path / 'b.png')
  found = predictor.predict([tmp_path / 'a.png', str(tmp_path / 'b.png')])
  assert found.shape == (2, 3)
  np.testing.assert_allclose(found[:1], predictor.predict(pixels), atol=1e-6)
  large = np.asarray(Image.fromarray(pixels).resize((80, 48)))
  assert predictor.predict(large).shape == (1, 3)


def test_many_images_are_predicted_like_few(predictor):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (70, 16, 16, 3), np.uint8)
  found = predictor.predict(images)
  assert found.shape == (70, 3)
  np.testing.assert_allclose(found[64:], predictor.predict(images[64:]), 1e-4)


def test_features_and_attention(predictor):
  images = np.zeros((2, 16, 16, 3), np.uint8)
  features, maps = predictor.features(images), predictor.attention(images)
  model = predictor.model
  assert features.shape == (2, model.width) and features.dtype == np.float32
  tokens = 16 // model.patch_size
  tokens = tokens**2 + 1
  assert maps.shape == (2, model.depth, model.num_heads, tokens, tokens)
  np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
  head = predictor.variables['params']['head']['logits']
  logits = features @ np.asarray(head['kernel']) + np.asarray(head['bias'])
  np.testing.assert_allclose(
    jax.nn.softmax(logits), predictor.predict(images), atol=1e-5
  )


def test_what_is_no_image_is_said(predictor, tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'nothing')
  for images, message in (
    (np.zeros((16, 16, 3), np.float32), r'float32\[16, 16, 3\]. Scale to'),
    (np.zeros((16, 16), np.uint8), r'uint8\[16, 16\]. Repeat'),
    (np.zeros((0, 16, 16, 3), np.uint8), 'Expected uint8 images'),
    ([], 'Expected uint8 images'),
    (tmp_path / 'absent.png', 'absent.png: No such file'),
    (tmp_path / 'bad.png', 'bad.png is not an image'),
  ):
    with pytest.raises(errors.UserError, match=message):
      predictor.predict(images)


def test_without_classes_a_model_gives_features():
  model = vit22b_jax.create('vit22b', variant='Ti', num_classes=0, depth=1)
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  features, variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x), images
  )
  assert features.shape == (2, 192)
  assert 'head' not in variables['params']


def test_create_computes_as_a_config_says():
  model = vit22b_jax.create('vit22b', num_classes=7)
  section = dict(common.classification().model)
  section |= {'num_classes': 7, 'patch_size': 16, 'attention': 'auto'}
  assert model == vit.build(**section)


def test_the_package_shows_what_it_has():
  assert set(vit22b_jax.__all__) <= set(dir(vit22b_jax))
  for name in vit22b_jax.__all__:
    assert getattr(vit22b_jax, name).__doc__
  root = pathlib.Path(vit22b_jax.__file__).parent
  assert (root / 'py.typed').exists()
  setup = (root.parent / 'setup.cfg').read_text()
  assert 'version = attr: vit22b_jax.__version__' in setup


@pytest.mark.parametrize(
  'text', ['{}', '[]', '3', 'null', '[1]', '["a", null]', '{"a"', '"a"']
)
def test_damaged_class_names_are_one_message(run, tmp_path, text):
  shutil.copy(run / 'config.json', tmp_path / 'config.json')
  (tmp_path / 'classes.json').write_text(text)
  with pytest.raises(errors.UserError, match=r'classes.json'):
    vit22b_jax.load(tmp_path)
