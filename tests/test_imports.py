"""Imports run downward only, and what costs seconds is imported where needed.

The order of the rooms is DESIGN's: a module imports from rooms above its own
line in ROOMS, or from its own room.
"""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = 'vit22b_jax'

# From the bottom up; modules of one row may know each other.
ROOMS = [
  {'errors', 'durations', 'rules', 'config'},
  {'models', 'data'},
  {'training'},
  {'runtime'},
  {'report', 'weights'},
  {'fid'},
  {'tasks'},
  {'plan'},
  {'modes'},
  {'train'},
  {'api', 'commands', 'cli'},
]
FILES = sorted((ROOT / PACKAGE).rglob('*.py'))
# 5 s to import, and most runs need neither.
SLOW = ('tensorflow', 'tensorflow_datasets', 'clu.metric_writers', 'torch')


def imports(path, *, only_at_start=False):
  """Absolute names of the modules that a file imports."""
  tree = ast.parse(path.read_text())
  nodes = tree.body if only_at_start else ast.walk(tree)
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(name):
  """models for vit22b_jax.models.vit, None for what's not of the package."""
  parts = name.split('.')
  return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def height(name):
  return next(i for i, row in enumerate(ROOMS) if name in row)


def ids(paths):
  return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize('path', FILES, ids=ids(FILES))
def test_the_package_imports_downward(path):
  own = path.relative_to(ROOT / PACKAGE).parts[0].removesuffix('.py')
  if own in ('__init__', '__main__'):
    return
  for name in imports(path):
    assert name.split('.')[0] not in ('configs', 'experiments', 'tests', 'main')
    above = room(name)
    if above is not None and above != own:
      assert height(above) <= height(own), f'{own} imports {name}'
      assert (own, above) != ('data', 'models')


def test_report_never_imports_jax():
  """Not even through others: a comparison starts at once, on any machine."""
  names = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in sorted((ROOT / PACKAGE / 'report').glob('*.py'))
  ]
  program = f'import sys, {", ".join(names)}; print("jax" in sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == 'False'


def test_configs_import_only_ml_collections_and_what_they_share():
  for path in sorted((ROOT / 'configs').glob('*.py')):
    for name in imports(path):
      allowed = name == 'configs.common' or name.startswith('ml_collections')
      assert allowed, f'{path.name} imports {name}'


def test_models_take_plain_fields():
  for path in sorted((ROOT / PACKAGE / 'models').glob('*.py')):
    for name in imports(path):
      assert name.split('.')[0] != 'ml_collections', path


@pytest.mark.parametrize('path', FILES, ids=ids(FILES))
def test_what_is_slow_to_import_is_imported_in_functions(path):
  for name in imports(path, only_at_start=True):
    slow = [s for s in SLOW if f'{name}.'.startswith(f'{s}.')]
    assert not slow, f'{path} imports {name} at once'


def test_the_command_line_starts_without_tensorflow():
  program = (
    f'import sys, vit22b_jax.cli\nprint(*({set(SLOW)!r} & set(sys.modules)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == []


def test_a_plan_of_absent_hardware_starts_on_the_cpu():
  """Also where JAX_PLATFORMS is unset, and a config file imported jax."""
  program = """
import sys
import jax
from vit22b_jax import cli
def run(flags):
  print(jax.config.jax_platforms)
sys.modules['vit22b_jax.commands'] = type(sys)('commands')
sys.modules['vit22b_jax.commands'].run = run
sys.argv = ['main.py', '--mode=plan', '--topology=h100:1']
cli.main()
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'},
    capture_output=True,
    text=True,
  )
  assert done.stdout.split() == ['cpu'], done.stderr


def test_runs_are_compared_without_jax(tmp_path):
  """The whole command, which is half of its time."""
  program = f"""
import sys
from vit22b_jax import cli
sys.argv = ['main.py', '--mode=report', '--workdir={tmp_path}']
sys.argv += ['--workdirs=experiments/digits/*']
try:
  cli.main()
finally:
  print('jax' in sys.modules)
"""
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout.splitlines()[-1:] == ['False'], done.stderr
  assert (tmp_path / 'comparison.html').exists()
