"""Command lines, early checks, JSON and what a resumed run may change."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import cifar10_vit22b_ti, common
from vit22b_jax import cli, errors
from vit22b_jax import config as config_lib

FILE = 'configs/cifar10_vit22b_ti.py'


def parse(*arguments):
  """What main does with its command line."""
  argv = ['main.py', *arguments]
  sys.modules.pop('config_config', None)  # what config_flags loaded last
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', None, 'Config file.', flag_values=values, sys_argv=argv
  )
  config_lib.parse_flags(argv, values)
  return values.config


def config(**overrides):
  result = common.finish(common.classification(), '')
  result.update_from_flattened_dict(overrides)
  return result


def test_overrides_of_every_type():
  got = parse(
    f'--config={FILE}:tiny',
    '--config.duration=7 steps',
    '--config.optim.learning_rate=1e-3',
    '--config.model.depth=3',
    '--config.model.pre_norm=false',
    '--config.data.mean=(0.5, 0.5, 0.25)',
    '--noconfig.log.tensorboard',
  )
  config_lib.validate(got)
  assert got.duration == '7 steps'
  assert got.optim.learning_rate == 1e-3
  assert (got.model.depth, got.model.width) == (3, 32)
  assert got.model.pre_norm is False
  assert got.model.qk_norm is None
  assert got.data.mean == (0.5, 0.5, 0.25)
  assert got.log.tensorboard is False


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      [f'--config={FILE}', '--config.optim.learning_rat=1'],
      r"--config\.optim\.learning_rat: .*mean 'optim\.learning_rate'\?",
    ),
    (
      [f'--config={FILE}', '--config.optm.learning_rate=1'],
      r"optm\.learning_rate: .*mean 'optim\.learning_rate'\?",
    ),
    ([f'--config={FILE}', '--config.batchsize=1'], "mean 'batch_size'"),
    ([f'--config={FILE}', '--noconfig.log.tensorbord'], 'log.tensorboard'),
    ([f'--config={FILE}', '--config.seed.x=1'], r'seed\.x: there is no such'),
    ([f'--config={FILE}', '--config.seed=one'], "--config.seed=one: .*'one'"),
    ([f'--config={FILE}', '--config.optim=1'], '--config.optim=1: '),
    (
      [f'--config={FILE}:tinny'],
      "ti.py:tinny: unknown word 'tinny' after the colon; known: paper, tiny$",
    ),
    (
      ['--config=configs/cifar10_vit22_ti.py'],
      r"no such file\. Did you mean 'configs/cifar10_vit22b_ti\.py'\?",
    ),
    (['--config=nowhere/x.py'], 'nowhere/x.py: no such file'),
    (['--config=vit22b_jax/errors.py'], 'has no get_config'),
    (['--config.seed=1'], '--config.seed: give --config=FILE before it'),
    (['--config.seed=1', f'--config={FILE}'], 'before a value for --config'),
    ([f'--config={FILE}', '--confg=1'], 'confg.*mean: config'),
    ([f'--config={FILE}', 'seed=1'], "unexpected argument 'seed=1'"),
  ],
)
def test_mistakes_on_the_command_line_are_one_clear_message(arguments, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    parse(*arguments)
  assert 'Traceback' not in str(caught.value)


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('optim.name', 'adamm', "one of adamw, .*mean 'adam"),
    ('optim.schedule', 'cosin', "mean 'cosine'"),
    ('optim.decay', 'x', 'matrices, all'),
    ('loss.kind', 'softmx', "mean 'softmax'"),
    ('data.augment', 'flip', 'none, paper, crop, standard, randaugment'),
    ('diagnostics.on_explosion', 'skip', "mean 'skip_step'"),
    ('task', 'classify', "mean 'classification'"),
    ('batch_size', 0, 'batch_size=0 must be at least 1'),
    ('loss.label_smoothing', 1.0, 'at least 0 and below 1'),
    ('optim.learning_rate', 0.0, 'above 0'),
    ('optim.learning_rate', float('nan'), 'above 0'),
    ('eval.batch_size', 0, 'eval.batch_size=0'),
    ('duration', '10%', '^duration: .*200 epochs'),
    ('log.every', '0 steps', "log.every='0 steps' must be above 0"),
    ('optim.warmup', 'soon', '^optim.warmup: .*3 epochs'),
    ('data.image_size', 30, '30 is not a multiple of model.patch_size=4'),
    ('data.std', (1.0, 0.0, 1.0), 'above 0'),
    ('data.mean', (1.0, 0.0), 'three numbers'),
    ('mesh.data', 0, '-1 for all'),
    ('mesh.tensor', -2, '-1 for all'),
    ('sharding', 'tensor', "mean 'fsdp\\+tensor'"),
  ],
)
def test_values_are_judged_early(key, value, message):
  with pytest.raises(errors.UserError, match=message):
    cli.check(config(**{key: value}))


def test_json_keeps_tuples_placeholders_and_the_lock():
  old = cifar10_vit22b_ti.get_config('tiny')
  new = config_lib.from_json(config_lib.to_json(old))
  assert new.to_dict() == old.to_dict()
  assert isinstance(new.data.mean, tuple)
  new.eval.batch_size = 4
  with pytest.raises(AttributeError):
    new.optim.learning_rat = 1.0


def test_a_run_stays_itself_but_may_grow_and_move():
  old = config_lib.from_json(config_lib.to_json(config()))
  moved = config(
    **{
      'duration': '300 epochs',
      'data.dir': 'gs://bucket/tfds',
      'eval.every': '2 epochs',
      'mesh.fsdp': 2,
      'sharding': 'fsdp',
    }
  )
  identity, free = config_lib.diff(old, moved)
  assert not identity
  assert free == [
    ('data.dir', '', 'gs://bucket/tfds'),
    ('duration', '200 epochs', '300 epochs'),
    ('eval.every', '1 epoch', '2 epochs'),
    ('mesh.fsdp', None, 2),
    ('sharding', 'data', 'fsdp'),
  ]
  old, new = {'data.name': 'folder:old'}, {'data.name': 'folder:/disk/new'}
  assert config_lib.diff(old, new) == (
    [],
    [('data.name', *old.values(), *new.values())],
  )
  assert config_lib.diff(old, {'data.name': 'cifar10'})[0]


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('seed', 1),
    ('batch_size', 64),
    ('model.depth', 3),
    ('optim.learning_rate', 1e-5),
    ('loss.kind', 'sigmoid'),
    ('data.val_fraction', 0.2),
    ('data.std', (1.0, 1.0, 1.0)),
    ('diagnostics.window', 99),  # its history is part of the state
  ],
)
def test_other_changes_make_another_run(key, value):
  old, new = config(), config(**{key: value})
  identity, free = config_lib.diff(old, new)
  assert identity == [(key, config_lib.flatten(old)[key], value)]
  assert not free


def test_a_key_of_another_version_makes_another_run():
  old = config().to_dict()
  del old['optim']['ema']
  identity, _ = config_lib.diff(old, config())
  assert identity == [('optim.ema', '(absent)', 0.0)]


def test_a_key_that_came_later_and_is_left_alone_is_the_same_run():
  old = config().to_dict()
  del old['model']['head_bias']
  assert config_lib.diff(old, config()) == ([], [])
  identity, _ = config_lib.diff(old, config(**{'model.head_bias': -10.0}))
  assert identity == [('model.head_bias', config_lib.ABSENT, -10.0)]


def test_keys_renamed_since_are_read_under_their_new_names(monkeypatch):
  monkeypatch.setitem(config_lib.RENAMED_KEYS, 'optim.rate', 'optim.b1')
  monkeypatch.setitem(config_lib.RENAMED_KEYS, 'name', 'seed')
  text = '{"name": 3, "optim": {"rate": 0.5, "name": "sgd"}}'
  new = config_lib.from_json(text)
  assert new.to_dict() == {'seed': 3, 'optim': {'b1': 0.5, 'name': 'sgd'}}
