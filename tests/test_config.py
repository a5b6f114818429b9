"""Command lines, early checks, JSON and what a resumed run may change."""

import dataclasses
import json
import math
import pathlib
import random
import sys

import pytest
from absl import flags

from configs import (
  cifar10_vit22b_s,
  cifar10_vit22b_ti,
  common,
  fruit_vitunet_ti,
)
from tests import test_main
from vit22b_jax import cli, commands, errors, rules, tasks
from vit22b_jax import config as config_lib
from vit22b_jax.data import augment
from vit22b_jax.fid import extractor, inception_resize
from vit22b_jax.models import patchgan, vit
from vit22b_jax.runtime import sharding
from vit22b_jax.training import optim

FILE = 'configs/cifar10_vit22b_ti.py'
ROOT = pathlib.Path(__file__).parent.parent


def parse(*arguments):
  """Parses a command line as main does."""
  argv = ['main.py', *arguments]
  sys.modules.pop('config_config', None)  # what config_flags loaded last
  values = flags.FlagValues()
  cli.define_flags(values, argv)
  cli.parse(argv, values)
  return values.config


def config(**overrides):
  result = common.finish(common.classification(), '')
  result.update_from_flattened_dict(overrides)
  return result


def test_the_dtype_follows_the_device_and_then_the_run():
  config = common.finish(common.classification(), 'tiny')
  saved = config.copy_and_resolve_references()
  config_lib.resolve_dtype(saved, 'gpu')
  assert (config.model.dtype, saved.model.dtype) == ('auto', 'bfloat16')
  config_lib.compare(saved, config, 'runs/x')
  config_lib.resolve_dtype(config, 'cpu')
  assert config.model.dtype == 'bfloat16'
  config = common.finish(common.translation(), 'tiny')
  config_lib.resolve_dtype(config, 'cpu')
  assert config.model.dtype == 'float32'


def test_a_home_folder_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/a')
  values = flags.FlagValues()
  argv = ['main.py', '--mode=predict', '--workdir=~/runs', '--input=~/x.jpg']
  cli.define_flags(values, argv)
  cli.parse(argv, values)
  assert (values.workdir, values.input) == ('/home/a/runs', '/home/a/x.jpg')


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
  config_lib.validate_config(got)
  assert got.duration == '7 steps'
  assert got.optim.learning_rate == 1e-3
  assert (got.model.depth, got.model.width) == (3, 32)
  assert got.model.pre_norm is False
  assert got.model.qk_norm is None
  assert got.data.mean == (0.5, 0.5, 0.25)
  assert got.log.tensorboard is False


def test_none_returns_a_key_to_its_default():
  file = 'configs/imagenet_vit22b_l.py'
  got = parse(
    f'--config={file}',
    '--config.data.crop_scale=None',
    '--config.data.load_size=None',
  )
  assert got.data.crop_scale is None and got.data.load_size is None
  size = parse(
    f'--config={file}',
    '--config.data.load_size=None',
    '--config.data.load_size=300',
  ).data.load_size
  assert size == 300


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([f'--config={FILE}', '--config.batch_size=None'], r"int\(\).*'None'"),
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
    ([f'--config={FILE}', '--config.task.x=1'], r'task\.x: there is no such'),
    (
      [f'--config={FILE}', '--config.data.mean[0]=1'],
      r"mean\[0\]: there is no such key.* mean 'data\.mean'\?",
    ),
    (
      [f'--config={FILE}', '--config.optim.=1'],
      r'optim\.: there is no such key',
    ),
    ([f'--config={FILE}', '--config.seed=one'], "--config.seed=one: .*'one'"),
    ([f'--config={FILE}', '--config.optim=1'], '--config.optim=1: '),
    (
      [f'--config={FILE}:tinny'],
      "unknown word 'tinny' after the colon; known: paper, strong, cpu, tiny$",
    ),
    (
      ['--config=configs/cifar10_vit22_ti.py'],
      r"no such file\. Did you mean 'configs/cifar10_vit22b_ti\.py'\?",
    ),
    (['--config=nowhere/x.py'], 'nowhere/x.py: no such file'),
    (
      ['--config=configs/fid.py', '--config=nowhere/x.py'],
      'nowhere/x.py: no such file',
    ),
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
  ('text', 'message'),
  [
    ('def get_config(', r'SyntaxError in line 1: '),
    ('def get_config(arg=""):\n  return 1 / 0', 'ZeroDivisionError in line 2'),
    ('open("/gone")', r"OSError[\s\S]*No such file.*: '/gone'"),
    ('import nothing_there', 'ModuleNotFoundError in line 1: No module'),
    ('def get_config(arg=""):\n  return {"a": 1}', 'not a config of this pack'),
    ('def get_config(arg=""):\n  return None', 'not a config of this package'),
    ('def get_config(arg=""):\n  return {}["x"]', "KeyError in line 2: 'x'"),
    ('x = 1', 'has no get_config'),
  ],
)
def test_a_faulty_config_file_is_one_message(text, message, tmp_path):
  (tmp_path / 'own.py').write_text(text)
  with pytest.raises(errors.UserError, match=f'own.py.* ?{message}') as caught:
    parse(f'--config={tmp_path}/own.py')
  assert 'Traceback' not in str(caught.value)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--lr=1'], r"--lr: there is .*'--config.optim.learning_rate'\?"),
    ([f'--config={FILE}', '--config.optim.lr=1'], "mean 'optim.learning_rate"),
    ([f'--config={FILE}', '--config.data.root=x'], "'data.dir' or 'data.name'"),
    ([f'--config={FILE}', '--config.task=translation'], 'task=.*with a config'),
    ([f'--config={FILE}', "--config.data.std=('a','b','c')"], 'three numbers'),
    (
      [f'--config={FILE}', f'--config.duration={"9" * 400}'],
      'at most 21474836',
    ),
    (
      [f'--config={FILE}', '--config.diagnostics.window=1000000000000'],
      '100000',
    ),
    ([f'--config={FILE}', '--config.model.eps=-1'], 'above 0'),
    ([f'--config={FILE}', '--config.model.head_bias=inf'], 'finite number'),
    (['--config=digit_vit22b_ti'], "mean 'digits_vit22b_ti'.* --list"),
  ],
)
def test_values_are_judged_before_anything_starts(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    parse(*arguments)


def test_help_and_list_need_no_device(capsys):
  assert 'Exit codes: 0 done' in cli.help_for(['vit22b', '--help'])
  assert '--max_size' in cli.help_for(['vit22b', '-h'])
  text = cli.help_for(['vit22b', f'--config={FILE}:tiny', '--help'])
  assert "duration = '4 steps'" in text and 'length of the whole run' in text
  assert 'digits_vit22b_ti' in cli.help_for(['vit22b', '--list'])
  assert cli.help_for(['vit22b', f'--config={FILE}']) == ''


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workdir=http://x'], 'local disks and gs:// alone'),
    (['--mode=plan', '--matmul_efficiency=nan'], 'matmul_efficiency=nan must'),
    (['--mode=probe', '--minutes=nan'], '--minutes=nan must be'),
    (['--workdirs=a'], '--workdirs is of --mode=report, and --mode=train'),
    (['--mode=eval', '--input=x'], 'of --mode=predict and translate, and'),
    (['--minutes=20'], '--minutes is of --mode=probe'),
    (
      ['--mode=translate', '--input=x', '--max_size=-1'],
      '-1 is not a non-neg',
    ),
    (['--mode=predict'], 'needs --input=FOLDER of images, or one file'),
  ],
)
def test_flags_are_judged_too(arguments, message, capsys):
  assert test_main.call('--workdir=w', *arguments) == 2
  assert message in capsys.readouterr().err


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
    ('batch_size', 0, 'batch_size=0 must be a whole number of at least 1'),
    ('loss.label_smoothing', 1.0, 'at least 0 and below 1'),
    ('optim.learning_rate', 0.0, 'above 0'),
    ('data.val_fraction', 0.0, 'above 0'),
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
    commands.validate(config(**{key: value}))


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
  assert identity == [(key, rules.flatten(old)[key], value)]
  assert not free


def test_a_key_of_another_version_makes_another_run():
  old = config().to_dict()
  del old['optim']['ema']
  identity, _ = config_lib.diff(old, config())
  assert identity == [('optim.ema', '(absent)', 0.0)]


def test_renamed_keys_lead_to_keys_that_exist():
  for new in config_lib.RENAMED_KEYS.values():
    assert any(new in known for known in rules.RULES.values()), new


def test_a_key_that_came_later_and_is_left_alone_is_the_same_run():
  old = config().to_dict()
  del old['model']['head_bias']
  assert config_lib.diff(old, config()) == ([], [])
  identity, _ = config_lib.diff(old, config(**{'model.head_bias': -10.0}))
  assert identity == [('model.head_bias', None, -10.0)]


def test_keys_renamed_since_are_read_under_their_new_names(monkeypatch):
  monkeypatch.setitem(config_lib.RENAMED_KEYS, 'optim.rate', 'optim.b1')
  monkeypatch.setitem(config_lib.RENAMED_KEYS, 'name', 'seed')
  old = {'name': 3, 'optim': {'rate': 0.5, 'name': 'sgd'}}
  new = {'seed': 3, 'optim': {'b1': 0.5, 'name': 'sgd'}}
  assert config_lib.upgrade(old) == rules.flatten(new)
  assert config_lib.diff(old, new) == ([], [])


def test_a_key_that_came_later_means_what_its_absence_did(monkeypatch):
  known = rules.RULES['classification']
  later = dataclasses.replace(known['optim.ema'], absent=0.5)
  monkeypatch.setitem(known, 'optim.ema', later)
  values = config().to_dict()
  del values['optim']['ema'], values['model']['depth']
  new = config_lib.from_json(json.dumps(values))
  assert (new.optim.ema, new.model.depth) == (0.5, None)
  assert config_lib.diff(values, config(**{'optim.ema': 0.5})) == ([], [])


# --- Every key -------------------------------------------------------------

TASKS = {
  'classification': common.classification,
  'translation': common.translation,
  'fid': common.comparison,
}
KEYS = [(task, key) for task in TASKS for key in rules.RULES[task]]
NUMBERS = (-1, -0.5, 0, 0.0, 1e300, 10**400, math.nan, math.inf, -math.inf)
OTHERS = ('', ' ', 'no such', (), (1.0,), [1], {}, None, object(), b'x', True)


def accepted(task, key):
  """Those of NUMBERS and OTHERS that the key takes."""
  rule = rules.RULES[task][key]
  found = []
  for value in (*NUMBERS, *OTHERS, 7, '7 steps', 0.25):
    try:
      rule.validate(key, value)
      found.append(value)
    except errors.UserError as error:
      message = str(error)
      assert key in message and len(message) < 700 and '\n' not in message
  return found


@pytest.mark.parametrize(('task', 'key'), KEYS)
def test_every_key_refuses_what_it_can_not_hold(task, key):
  rule, found = rules.RULES[task][key], accepted(task, key)
  kinds = (int, float) if rule.kind is float else rule.kind
  if rule.check:  # durations may be numbers of steps
    kinds = (str, int)
  for value in found:
    assert value is None or isinstance(value, kinds), value
    assert rule.kind is bool or value is not True
    if isinstance(value, float | int):
      assert -1e6 < value < 1e31
  assert (None in found) == rule.optional
  default = rules.flatten(TASKS[task]())[key]
  rule.validate(key, default)


@pytest.mark.parametrize('task', TASKS)
def test_every_key_has_a_rule_and_every_rule_a_key(task):
  values = rules.flatten(TASKS[task]())
  assert values.pop('task') == task
  assert values.keys() == rules.RULES[task].keys()


def test_numbers_at_the_ends_of_their_ranges():
  known = rules.RULES['classification']
  for key, good, bad in (
    ('optim.b1', (0, 0.999), (1, -1e-9)),
    ('optim.learning_rate', (1e-30, 1), (0,)),
    ('model.eps', (1e-6, None), (0, -1, 1.0)),
    ('model.head_bias', (-10.0, None, 0), (float('inf'), 1e30)),
    ('diagnostics.window', (1, 200), (0, 10**12, 1e12)),
    ('seed', (0, 2**32 - 1), (2**32, -1, 0.5)),
    ('mesh.data', (None, -1, 1, 4096), (0, -2)),
    ('data.std', ((1.0, 0.5, 1),), (('a', 'b', 'c'), (1.0, 1.0), (1, 1, 0))),
    ('profile', ('', '3', '10-15'), ('a', '1-', '²')),
    ('init_from', ('', 'a.npz', 'gs://b/c'), ('https://x/a.npz', 'a\0')),
    ('data.name', ('cifar10', 'folder:x'), ('folder:http://x/y', '')),
    ('data.val_fraction', (0.01, 0.9), (0, 1, -0.1)),
    ('duration', ('3 epochs', 5, '5'), ('9' * 400, '10%', '²', 0, '1e3')),
  ):
    for value in good:
      known[key].validate(key, value)
    for value in bad:
      with pytest.raises(errors.UserError, match=key):
        known[key].validate(key, value)
  weights = rules.RULES['fid']['fid.weights']
  for value in ('', 'a/file.pth', 'random:0'):
    weights.validate('fid.weights', value)
  for value in ('random:²', 'random:', 'random:-1', 'random:x'):
    with pytest.raises(errors.UserError, match='random:SEED'):
      weights.validate('fid.weights', value)


def test_choices_are_those_that_the_code_knows():
  known = rules.RULES['translation'] | rules.RULES['classification']
  both = rules.RULES['translation']['optim.schedule'].choices
  for choices, key in (
    (sharding.PRESETS, 'sharding'),
    (augment.PRESETS, 'data.augment'),
    (vit.PRESETS, 'model.block'),
    (vit.VARIANTS, 'model.variant'),
    (patchgan.PRESETS, 'discriminator.name'),
    (extractor.TAPS, 'fid.tap'),
    (inception_resize.MODES, 'fid.resize'),
    (tasks.TASKS.keys() | {'fid'}, None),
  ):
    expected = known[key].choices if key else rules.RULES
    assert set(choices) == set(expected), key
  assert set(optim.SCHEDULES) == set(both)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda v: v['eval'].update(checkpoint='worst'), "checkpoint='worst' is"),
    (
      lambda v: v['optim'].update(b1='0.9'),
      "optim.b1='0.9' must be a finite numb",
    ),
    (
      lambda v: v['optim'].pop('b1'),
      'the key optim.b1 is missing for this task',
    ),
    (lambda v: v.pop('optim'), r'the key optim\.\w+ is missing'),
    (lambda v: v.update(optim=3), 'there is no key optim for'),
    (lambda v: v.update(optim=None), 'there is no key optim for'),
    (lambda v: v.pop('task'), 'task=None is not one of'),
    (lambda v: v.update(task=['x']), r"task=\('x',\) is not one of"),
    (lambda v: v.update(task='translation'), "task='translation': there is no"),
    (lambda v: v['data'].update(std=[1, 2]), 'must be three numbers'),
    (lambda v: v['model'].update(depht=2), "depht .*mean 'model.depth'"),
    (lambda v: v.update(duration={}), 'there is no key|is missing'),
  ],
)
def test_a_saved_config_is_judged_like_a_given_one(change, message):
  values = config().to_dict()
  change(values)
  with pytest.raises(errors.UserError, match=f'^w/config.json: .*{message}'):
    config_lib.from_json(json.dumps(values), 'w/config.json')


@pytest.mark.parametrize(
  'text', ['', '[]', '3', 'null', '"x"', '{', '[' * 100_000, '\0', '{"a": 1}x']
)
def test_a_file_that_holds_no_config_is_damaged(text):
  with pytest.raises(errors.UserError, match=r'^config\.json is damaged'):
    config_lib.from_json(text)


def test_any_json_gives_a_config_or_one_message():
  rng = random.Random(0)
  whole = config_lib.to_json(config())
  pieces = ('', '{', '}', '[]', ':', ',', '-', '1e999', 'null', '"', 'NaN', '[')
  refused = 0
  for _ in range(200):
    at = rng.randrange(len(whole))
    text = whole[:at] + rng.choice(pieces) + whole[at + rng.randrange(9) :]
    try:
      config_lib.from_json(text)
    except errors.UserError as error:
      refused += 1
      assert str(error).startswith('config.json')
  assert refused > 100


@pytest.mark.parametrize(
  ('task', 'module'),
  [
    ('classification', cifar10_vit22b_s),
    ('translation', fruit_vitunet_ti),
  ],
)
def test_a_run_of_an_older_version_resumes(task, module):
  """Keys have been renamed and added since tests/golden/old_config_* were."""
  file = ROOT / 'tests' / 'golden' / f'old_config_{task}.json'
  old = json.loads(file.read_text())
  changes = config_lib.compare(old, module.get_config(), 'w')
  assert {key for key, *_ in changes} <= {'model.attention'}
  assert config_lib.from_json(file.read_text()).task == task
