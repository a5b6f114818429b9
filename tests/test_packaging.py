"""What an installation holds: every package, the configs, the command."""

import configparser
import pathlib
import subprocess
import sys

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
