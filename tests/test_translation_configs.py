"""Every translation's config: sound in each form, buildable at full size.

And every key is read: one that isn't would promise what nothing keeps.
"""

import importlib
import pathlib
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests import test_configs
from tests.tasks import test_cyclegan
from vit22b_jax import commands, rules, train
from vit22b_jax.data import catalog, loader, splits
from vit22b_jax.runtime import sharding
from vit22b_jax.tasks import cyclegan, cyclegan_update
from vit22b_jax.training import optim

FOLDER = pathlib.Path(__file__).parent.parent / 'configs'
NAMES = sorted(
  path.stem
  for path in FOLDER.glob('*.py')
  if path.stem != 'common' and 'common.translation()' in path.read_text()
)
WORDS = ('', 'cyclegan', 'released', 'paper', 'tiny', 'paper,tiny')
WORDS += ('cpu', 'resnet', 'resnet,paper', 'resnet,cpu', 'resnet,tiny')


def load(name, arg=''):
  return importlib.import_module(f'configs.{name}').get_config(arg)


def test_every_generator_and_set_of_the_paper_has_its_file():
  blocks = {'vitunet': 'released_vit', 'vit22bunet': 'released'}
  for data in ('apple2orange', 'monet2photo'):
    for model in ('vitunet_s', 'vitunet_b', 'vit22bunet_s'):
      config = load(f'{data}_{model}')
      kind, variant = model.split('_')
      assert config.data.name == f'cycle_gan/{data}'
      assert config.model.block == blocks[kind]
      assert config.model.variant == variant.upper()
      assert config.model.resample == 'channels'


@pytest.mark.parametrize('name', NAMES)
def test_docstring_gives_command_time_and_result(name):
  text = importlib.import_module(f'configs.{name}').__doc__
  assert f'python main.py --config=configs/{name}.py' in text
  assert 'Hardware and time:' in text
  assert 'Expected:' in text


@pytest.mark.parametrize('name', NAMES)
def test_values_are_sound_and_locked_with_every_word(name):
  for words in WORDS:
    config = load(name, words)
    commands.validate(config)
    assert config.is_locked
    if 'tiny' in words:
      assert config.data.image_size == 32


def test_the_recipes_are_the_published_ones():
  cyclegan = load('apple2orange_vitunet_s', 'released,cyclegan')
  assert cyclegan.to_dict() == load('apple2orange_vitunet_s').to_dict()
  optim, loss = cyclegan.optim, cyclegan.loss
  assert (optim.learning_rate, optim.b1, optim.b2) == (2e-4, 0.5, 0.999)
  assert (optim.pool_size, optim.update_order) == (50, 'generators')
  assert (loss.lambda_cycle, loss.lambda_identity) == (10, 0.5)
  assert (loss.gan, loss.discriminator_factor) == ('lsgan', 0.5)
  assert (cyclegan.batch_size, cyclegan.duration) == (1, '200 epochs')
  data = cyclegan.data
  assert (data.load_size, data.image_size, data.flip) == (286, 256, True)
  released = load('monet2photo_vit22bunet_s', 'paper')
  assert (released.optim.pool_size, released.batch_size) == (0, 32)
  assert released.optim.update_order == 'discriminators'
  assert released.loss.discriminator_factor == 1
  assert released.data.pairing == 'index'
  assert released.data.load_size == released.data.image_size == 256
  assert released.model.dtype == 'float16'
  fid = released.fid
  assert (fid.tap, fid.resize, fid.quantize) == (64, 'tf1', 'truncate')
  assert fid.num == 'min'


RECIPE = (
  *('batch_size', 'duration', 'discriminator.', 'optim.', 'loss.'),
  *('model.dtype', 'data.image_size', 'data.load_size', 'data.preprocess'),
  *('data.flip', 'data.pairing'),
)
FID = ('fid.tap', 'fid.resize', 'fid.quantize', 'fid.num')


@pytest.mark.parametrize(
  ('word', 'recipe'),
  [
    ('cyclegan', RECIPE),
    ('released', RECIPE),
    ('paper', (*RECIPE, *FID, 'model.patch_size')),
    ('resnet', ('model.',)),
  ],
)
def test_words_set_all_of_their_recipe_whatever_a_file_changed(word, recipe):
  config = common.translation()
  kept = {'model.dtype', 'model.precision'} if word == 'resnet' else set()
  keys = {k for k in rules.flatten(config) if k.startswith(recipe)}
  for key in keys - kept:
    section, _, name = key.rpartition('.')
    section = config[section] if section else config
    section[name] = other_than(section[name], section.get_type(name))
  config.model.generator = 'vitunet'
  common.finish(config, word)
  expected = common.finish(common.translation(), word)
  got, expected = map(rules.flatten, (config, expected))
  assert {k: got[k] for k in keys} == {k: expected[k] for k in keys}


def other_than(value, kind):
  if kind is bool:
    return not value
  return f'{value} or not' if kind is str else kind((value or 0) + 1)


# DESIGN.md, at 256 px and patch 32.
@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('monet2photo_vitunet_s', 13_097_219),
    ('monet2photo_vit22bunet_s', 13_086_083),
    ('monet2photo_vitunet_b', 43_544_387),
  ],
)
def test_generators_have_the_published_sizes(name, count):
  networks = cyclegan_update.build_networks(load(name))
  shapes = nn.unbox(
    jax.eval_shape(
      networks.generator.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3))
    )
  )
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def stand_in(config):
  """Two generated domains of the config's size."""
  rng = np.random.default_rng(0)

  def pair(count, size):
    def split():
      images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
      return splits.ArraySplit(images)

    return catalog.Pair(split(), split())

  data = config.data
  return catalog.Dataset(
    pair(5, data.load_size),
    pair(3, data.image_size),
    pair(4, data.image_size),
    ('day', 'night'),
  )


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*images for 64 features')
def test_a_run_writes_its_files_and_reads_every_key(monkeypatch, tmp_path):
  # The same step as in those tests: compiled once for all of them.
  values = test_cyclegan.small_config().to_dict()
  reads = set()
  config = test_configs.recorded(values, reads)
  loaded = stand_in(config)
  reads.clear()  # what counts is what the package asks for
  load_like = mock.create_autospec(loader.load_domains, return_value=loaded)
  monkeypatch.setattr(loader, 'load_domains', load_like)
  cyclegan.CycleGAN.validate_config(config)
  # Smaller ones than a config can ask for, which compile fast.
  networks = test_cyclegan.small_networks
  monkeypatch.setattr(cyclegan_update, 'build_networks', networks)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  assert train.run(config, tmp_path / 'run', mesh) == 0
  files = {str(p.relative_to(tmp_path / 'run')) for p in _files(tmp_path)}
  for step in (0, 2, 4):
    assert f'samples/a2b_{step:08d}.png' in files
    assert f'samples/b2a_{step:08d}.png' in files
  assert {'eval.json', 'metrics.jsonl', 'diagnostics.csv'} <= files
  commands.make_mesh(config)
  config.optim.name = 'sgd'  # alone has momentum
  config.optim.schedule = 'linear'  # alone has a start
  optim.make(config.optim, batch_size=1, steps_per_epoch=1, total_steps=1)
  unread = set(rules.flatten(config)) - reads
  assert sorted(unread) == []


def _files(folder):
  return [path for path in folder.rglob('*') if path.is_file()]


def test_unknown_words_list_the_known():
  with pytest.raises(
    ValueError, match='cyclegan, released, resnet, paper, cpu, tiny'
  ):
    common.finish(common.translation(), 'huge')
