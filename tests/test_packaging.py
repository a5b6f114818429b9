"""What an installation holds: every package, the configs, the command."""

import configparser
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def setup():
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg')
  return parser


def test_every_folder_of_code_is_a_package_that_is_installed():
  found = {
    '.'.join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / 'vit22b_jax').rglob('*.py')
  }
  listed = setup()['options']['packages'].split()
  assert sorted(listed) == sorted(found | {'vit22b_jax.configs'})


def test_the_command_is_the_command_line():
  from vit22b_jax import cli

  (line,) = setup()['options.entry_points']['console_scripts'].split('\n')[1:]
  name, _, target = line.partition(' = ')
  assert (name, target) == ('vit22b', f'{cli.__name__}:{cli.main.__name__}')


def test_an_installation_finds_its_configs(tmp_path):
  """The package with `configs` in it, as a wheel has them, and no checkout."""
  (tmp_path / 'site').mkdir()
  package = tmp_path / 'site' / 'vit22b_jax'
  package.symlink_to(ROOT / 'vit22b_jax')
  code = (
    'import pathlib, sys\n'
    'from vit22b_jax import cli\n'
    'from vit22b_jax.modes import named_configs\n'
    f'named_configs._PACKAGE = pathlib.Path({str(tmp_path)!r}, "installed")\n'
    'cli.main()\n'
  )
  (tmp_path / 'installed').mkdir()
  (tmp_path / 'installed' / 'configs').symlink_to(ROOT / 'configs')
  done = subprocess.run(
    [sys.executable, '-c', code, '--config=digits_vit22b_ti:tiny', '--help'],
    cwd=tmp_path,
    env={'PYTHONPATH': str(tmp_path / 'site'), 'PATH': ''},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f'Keys of {tmp_path}/installed/configs/digits_vit22b_ti.py' in (
    done.stdout
  )
  assert "duration = '4 steps'" in done.stdout


def test_preparing_a_set_without_tensorflow_names_it(monkeypatch, tmp_path):
  import tensorflow_datasets

  from vit22b_jax import errors
  from vit22b_jax.data.readers import tfds

  def builder(*arguments, **options):
    raise ModuleNotFoundError("In <Image>: No module named 'tensorflow'")

  monkeypatch.setattr(tensorflow_datasets, 'builder', builder)
  with pytest.raises(errors.UserError, match='pip install tensorflow'):
    tfds._prepared('cifar10', str(tmp_path))


def test_tensorflow_is_an_extra_that_make_installs():
  sections = setup()
  required = sections['options']['install_requires']
  found = re.findall(r'^(tensorflow[\w-]*)>', required, re.M)
  assert found == ['tensorflow-datasets']
  extra = sections['options.extras_require']['tensorflow']
  assert re.findall(r'^([\w-]+)>', extra, re.M) == [
    'tensorflow',
    'tensorflow-cpu',
  ]
  makefile = (ROOT / 'Makefile').read_text()
  assert makefile.count("$(INSTALL) -e '.[tensorflow") == 2
