"""What a resumed run asks of its images and names."""

import shutil

import numpy as np
import pytest

from configs import folder as folder_config
from configs import translation_folder
from tests.helpers import data_fixtures
from vit22b_jax import commands, errors
from vit22b_jax import config as config_lib
from vit22b_jax.modes import setup
from vit22b_jax.runtime import workdir
from vit22b_jax.tasks import classification, cyclegan


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def run(tmp_path):
  found = workdir.Workdir(tmp_path / 'run', tensorboard=False, writer=True)
  found.diagnostics(1, {'loss': 1.0})
  found.flush()
  yield found
  found.close()


def classes(root, **keys):
  config = folder_config.get_config('tiny')
  config.data.name, config.data.image_size = f'folder:{root}', 16
  config.data.update(keys)
  return config


def domains(root):
  config = translation_folder.get_config('tiny')
  config.data.name = f'folder:{root}'
  return config


def remember(run, data):
  run.write_json(workdir.CLASSES, list(data.names))
  run.write_json(workdir.DATA, dict(data.fingerprint))


def test_other_images_are_refused_listed_and_allowed(run, tmp_path, capsys):
  root = data_fixtures.make_folder(tmp_path / 'a', counts={'train': 16})
  load = classification.Classification.load_data
  remember(run, load(classes(root)))
  setup.validate_same_data(classes(root), load(classes(root)), run)
  for number in range(64):
    image = root / 'train' / 'cat' / '000.png'
    shutil.copy(image, image.with_name(f'new{number}.png'))
  data = load(classes(root))
  with pytest.raises(errors.UserError) as caught:
    setup.validate_same_data(classes(root), data, run)
  message = str(caught.value)
  assert 'train/cat: 16 images, now 80' in message
  assert 'train/dog' not in message
  assert '--config.data.allow_changes=True' in message
  allowed = classes(root, allow_changes=True)
  setup.validate_same_data(allowed, data, run)
  assert 'train/cat: 16 images, now 80' in capsys.readouterr().out


def test_a_run_that_remembers_nothing_goes_on(run, tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'a')
  data = classification.Classification.load_data(classes(root))
  setup.validate_same_data(classes(root), data, run)


def test_a_damaged_memory_is_one_message(run, tmp_path):
  run.write_bytes(workdir.DATA, b'[1]')
  root = data_fixtures.make_folder(tmp_path / 'a')
  data = classification.Classification.load_data(classes(root))
  with pytest.raises(errors.UserError, match=r'data\.json'):
    setup.validate_same_data(classes(root), data, run)


def test_a_renamed_folder_resumes_a_translation(run, tmp_path):
  root = data_fixtures.make_domains(tmp_path / 'dark2bright')
  load = cyclegan.CycleGAN.load_data
  remember(run, load(domains(root)))
  root = root.rename(tmp_path / 'photos')
  data = load(domains(root))
  assert data.names == ('a', 'b')
  setup.validate_same_data(domains(root), data, run)


def test_renamed_classes_are_another_run(run, tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'a')
  load = classification.Classification.load_data
  remember(run, load(classes(root)))
  (root / 'train' / 'cat').rename(root / 'train' / 'zebra')
  config = classes(root, allow_changes=True)
  with pytest.raises(errors.UserError, match='3 classes bird, cat, dog'):
    setup.validate_same_data(config, load(config), run)


def test_an_evaluation_wants_the_classes_of_the_training(run, tmp_path, caplog):
  """Labels count classes; other images may be meant, and are told."""
  root = data_fixtures.make_folder(tmp_path / 'a', counts={'train': 16})
  config = classes(root)
  remember(run, classification.Classification.load_data(config))
  run.write_bytes(workdir.CONFIG, config_lib.to_json(config).encode())
  image = root / 'train' / 'cat' / '000.png'
  shutil.copy(image, image.with_name('new.png'))
  commands.open_run('eval', run.path, None)
  assert 'train/cat: 16 images, now 17' in caplog.text
  (root / 'train' / 'cat').rename(root / 'train' / 'zebra')
  with pytest.raises(errors.UserError, match='3 classes bird, cat, dog'):
    commands.open_run('eval', run.path, None)


def test_the_split_has_a_seed_of_its_own(tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'a', counts={'train': 16})

  def val(seed, split_seed):
    config = classes(root, split_seed=split_seed)
    config.seed = seed
    return classification.Classification.load_data(config).val.images

  np.testing.assert_array_equal(val(1, None), val(5, 1))
  np.testing.assert_array_equal(val(0, 0), val(3, 0))
  assert not np.array_equal(val(0, None), val(1, None))


def test_images_are_loaded_larger_than_the_model_sees(tmp_path):
  root = data_fixtures.make_folder(tmp_path / 'a')
  config = classes(root, load_size=20)
  data = classification.Classification.load_data(config)
  assert data.train[0]['image'].shape == (20, 20, 3)
  config.data.load_size = 12
  with pytest.raises(errors.UserError, match='load_size=12 is smaller'):
    classification.Classification.validate_config(config)
