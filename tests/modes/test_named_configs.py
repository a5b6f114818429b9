"""Configs by name, their listing, and their keys with comments."""

import pathlib
import re

import pytest

from configs import common
from vit22b_jax import rules
from vit22b_jax.modes import named_configs

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ('--config=digits_vit22b_ti', '--config={}/digits_vit22b_ti.py'),
    ('--config=digits_vit22b_ti:a,b', '--config={}/digits_vit22b_ti.py:a,b'),
    ('--config=configs/fid.py:paper', '--config={}/fid.py:paper'),
    ('--config=other/fid.py', '--config=other/fid.py'),
    ('--config=digits', '--config=digits'),
    ('--workdir=fid', '--workdir=fid'),
  ],
)
def test_names_stand_for_files(given, expected, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  expected = expected.format(ROOT / 'configs')
  assert named_configs.resolve(['vit22b', given]) == ['vit22b', expected]


def test_a_name_may_be_an_argument_of_its_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = named_configs.resolve(['vit22b', '--config', 'fid:paper', 'fid'])
  path = f'{ROOT}/configs/fid.py:paper'
  assert found == ['vit22b', '--config', path, 'fid']


def test_a_file_of_that_path_comes_first(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'fid.py').touch()
  monkeypatch.chdir(tmp_path)
  argv = ['vit22b', '--config=configs/fid.py']
  assert named_configs.resolve(argv) == argv


def test_the_listing_has_a_line_for_each():
  lines = named_configs.listing().splitlines()
  assert [line.split()[0] for line in lines] == named_configs.names()
  assert {'fid', 'folder', 'digits_vit22b_ti'} < set(named_configs.names())
  assert 'ViT-22B-S/4 from scratch on CIFAR-100' in named_configs.listing()


@pytest.mark.parametrize('task', rules.RULES)
def test_every_key_has_a_comment_that_lists_its_choices(task):
  said = named_configs.comments(task)
  assert said.keys() >= rules.RULES[task].keys()
  for key, rule in rules.RULES[task].items():
    for choice in rule.choices:
      assert str(choice) in re.split(r'[^\w+]+', said[key]), key


def test_a_description_has_every_key_value_comment_and_range():
  config = common.finish(common.classification(), 'tiny')
  path = str(ROOT / 'configs' / 'cifar10_vit22b_s.py')
  text = named_configs.describe(config, path)
  for key, value in rules.flatten(config).items():
    assert f'\n  {key} = {value!r}\n' in f'{text}\n'
  assert '      at the schedule' in text
  assert '      must be a finite number above 0\n' in text
  assert '      adamw | adam | sgd | adagrad\n' in text


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('optim.lr', "'optim.learning_rate'"),
    ('lr', "'optim.learning_rate'"),
    ('wd', "'optim.weight_decay'"),
    ('total_steps', "'duration'"),
    ('epochs', "'duration'"),
    ('drop_path_rate', "'model.stochastic_depth'"),
    ('model.drop-path', "'model.stochastic_depth'"),
    ('data.root', "'data.dir' or 'data.name'"),
    ('optim.learning_rat', "'optim.learning_rate'"),
  ],
)
def test_names_of_other_trainers_lead_to_the_key(name, expected):
  found = named_configs.suggest_key(name, rules.RULES['classification'])
  assert found == f' Did you mean {expected}?'
