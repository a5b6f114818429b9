"""Every classifier's config: at full size in shape, for two steps in earnest.

And every key is read: one that isn't would promise what nothing keeps.
"""

import importlib
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from configs import common
from vit22b_jax import commands, rules, train
from vit22b_jax.data import catalog, loader, splits
from vit22b_jax.models import heads, vit
from vit22b_jax.runtime import sharding
from vit22b_jax.training import optim

FOLDER = pathlib.Path(__file__).parent.parent / 'configs'
NAMES = sorted(
  path.stem
  for path in FOLDER.glob('*.py')
  if path.stem != 'common' and 'common.classification()' in path.read_text()
)
CLASSES = {
  'cifar10': 10,
  'cifar100': 100,
  'digits': 10,
  'folder': 3,
  'imagenet2012': 1000,
}


def load(name, arg=''):
  return importlib.import_module(f'configs.{name}').get_config(arg)


def num_classes(config):
  return CLASSES[config.data.name.partition(':')[0]]


def stand_in(config, count=16):
  """A generated data set of the same form as the config's own."""
  rng = np.random.default_rng(0)
  size = config.data.image_size
  parts = [
    splits.ArraySplit(
      rng.integers(0, 256, (count, size, size, 3), np.uint8),
      np.arange(count, dtype=np.int32) % num_classes(config),
    )
    for _ in ('train', 'val', 'test')
  ]
  names = tuple(f'class {i}' for i in range(num_classes(config)))
  return catalog.Dataset(*parts, names=names)


@pytest.fixture
def run(monkeypatch, tmp_path):
  """Trains a config on its stand-in and gives the workdir."""

  def run_(config):
    monkeypatch.setattr(
      loader, 'load_classes', lambda *_, **__: stand_in(config)
    )
    split = config.sharding != 'data'
    devices = jax.devices() if split else jax.devices()[:1]
    mesh = sharding.make_mesh(config.sharding, devices=devices)
    assert train.run(config, tmp_path / 'run', mesh) == 0
    return tmp_path / 'run'

  return run_


def test_every_block_variant_and_set_of_the_paper_has_its_file():
  for data in ('cifar10', 'cifar100'):
    for block in ('vit', 'vit22b'):
      for variant in ('Ti', 'S', 'B', 'L'):
        config = load(f'{data}_{block}_{variant.lower()}')
        assert config.data.name == data
        assert config.model.block == block
        assert config.model.variant == variant
        assert (config.data.image_size, config.model.patch_size) == (32, 4)
        assert config.batch_size == 128
        assert 1e-5 <= config.optim.learning_rate <= 5e-4  # the paper's range


@pytest.mark.parametrize('name', NAMES)
def test_docstring_gives_command_time_and_result(name):
  text = importlib.import_module(f'configs.{name}').__doc__
  assert f'python main.py --config=configs/{name}.py' in text
  assert 'Hardware and time:' in text
  assert 'Expected:' in text


@pytest.mark.parametrize('words', ['', 'paper', 'cpu', 'tiny', 'paper,tiny'])
@pytest.mark.parametrize('name', NAMES)
def test_values_are_sound_and_locked(name, words):
  config = load(name, words)
  commands.validate(config)
  assert config.is_locked
  if words == 'paper':
    assert (config.data.image_size, config.model.patch_size) == (224, 16)
  if 'tiny' in words:
    assert config.model.depth == 1


def test_words_are_known_and_may_have_spaces():
  assert load('cifar10_vit_s', ' tiny , paper ').model.depth == 1
  with pytest.raises(
    ValueError, match=r"unknown word 'huge'.*paper, strong, cpu, tiny"
  ):
    load('cifar10_vit_s', 'tiny,huge')


def test_a_short_run_keeps_the_augmentation_that_was_chosen():
  assert load('cifar10_vit_s', 'cpu').data.augment == 'standard'
  assert load('digits_vit22b_ti', 'cpu').data.augment == 'crop'
  assert load('cifar10_vit_s', 'strong,cpu').data.augment == 'strong'
  assert load('cifar10_vit_s', 'cpu,strong').data.augment == 'strong'
  assert load('imagenet_vit22b_l', 'strong').data.mixup is None


def test_placeholders_are_apart():
  config = common.finish(common.classification(), '')
  config.model.depth = 3
  assert config.model.width is None
  assert common.classification().model.depth is None


@pytest.mark.parametrize('name', NAMES)
def test_builds_at_full_size(name):
  for words in ('', 'paper'):
    config = load(name, words)
    model = vit.build(**config.model, num_classes=num_classes(config))
    size = config.data.image_size
    logits, variables = jax.eval_shape(
      lambda images, model=model: model.init_with_output(
        jax.random.key(0), images
      ),
      jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32),
    )
    assert logits.shape == (2, num_classes(config))
    width = vit.VARIANTS[config.model.variant]['width']
    shapes = {leaf.shape for leaf in jax.tree.leaves(variables)}
    assert (config.model.patch_size**2 * 3, width) in shapes


def test_the_full_size_has_the_published_number_of_weights():
  config = load('vit22b_22b')
  model = vit.build(**config.model, num_classes=1000)
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda x: nn.unbox(model.init(jax.random.key(0), x)['params']), images
  )
  count = {
    name: sum(leaf.size for leaf in jax.tree.leaves(part))
    for name, part in shapes.items()
  }
  head = count['head'] + count['map_pool']
  assert head == 459_197_416
  assert sum(count.values()) == 22_209_448_936
  published = 21_743e6  # Table 1 of the paper
  np.testing.assert_allclose(sum(count.values()) - head, published, rtol=1e-3)


def test_the_full_size_starts_sure_that_no_class_is_there():
  model = vit.build(**load('vit22b_22b').model, num_classes=7)
  head = heads.Head(
    'linear', 7, 0, 'torch', 'default', initial_bias=model.head_bias
  )
  logits, _ = head.init_with_output(jax.random.key(0), jnp.zeros((1, 5)), False)
  np.testing.assert_array_equal(logits, np.full((1, 7), -10.0))


# Programs of their own, which take long to compile and differ from the others'
# in the number of classes, augmentation or head alone.
SLOW = ('imagenet', 'cifar100', 'vit22b_22b', 'cifar10_vit22b_')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * name.startswith(SLOW))
    for name in NAMES
  ],
)
def test_trains_two_steps(name, run):
  config = load(name, 'tiny')
  config.duration = '2 steps'
  # A constant of the compiled step: with one value, sizes share a program.
  config.optim.learning_rate = 1e-3
  workdir = run(config)
  rows = (workdir / 'diagnostics.csv').read_text().splitlines()
  assert len(rows) == 1 + 2
  assert (workdir / 'eval.json').exists()


def recorded(values, reads, prefix=''):
  """A config that notes in `reads` which keys were looked at, one by one.

  Copying it as a whole (to_dict: for config.json, for validation) reads
  nothing: a value that was only copied has had no effect.
  """

  class Section(config_dict.ConfigDict):
    def __getitem__(self, key):
      value = super().__getitem__(key)
      if not isinstance(value, config_dict.ConfigDict):
        reads.add(prefix + key)
      return value

    def to_dict(self, *args, **kwargs):
      before = set(reads)
      result = super().to_dict(*args, **kwargs)
      reads.intersection_update(before)
      return result

  section = Section()
  for key, value in values.items():
    if isinstance(value, dict):
      value = recorded(value, reads, f'{prefix}{key}.')
    section[key] = value
  return section


def test_every_key_is_read(run):
  reads = set()
  config = recorded(load('cifar10_vit22b_ti', 'tiny').to_dict(), reads)
  assert not reads
  run(config)
  commands.make_mesh(config)
  config.optim.name = 'sgd'  # alone has momentum
  optim.make(config.optim, batch_size=1, steps_per_epoch=1, total_steps=1)
  unread = set(rules.flatten(config)) - reads
  assert sorted(unread) == []
