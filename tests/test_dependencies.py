"""setup.cfg lists every package that the code imports, and no name twice."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
OWN = {'vit22b_jax', 'configs', 'experiments', 'tests', 'main'}
# Imported late, by those who install the extra.
EXTRAS = {'wandb': 'wandb'}


def requirements(section, option):
  """Names of the distributions that an option of setup.cfg lists."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  lines = config[section][option].strip().splitlines()
  names = [re.match(r'[\w.-]+', line) for line in lines]
  return [name[0].lower().replace('_', '-') for name in names if name]


def imports(path):
  """First parts of the names of the modules that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module.split('.')[0]


def test_every_direct_import_is_listed():
  files = [*(ROOT / 'vit22b_jax').rglob('*.py'), ROOT / 'main.py']
  files += (ROOT / 'configs').glob('*.py')
  found = {name for path in files for name in imports(path)}
  distributions = importlib.metadata.packages_distributions()
  listed = {*requirements('options', 'install_requires')}
  for name in sorted(found - OWN - set(sys.stdlib_module_names)):
    if name in EXTRAS:
      extra = requirements('options.extras_require', EXTRAS[name])
      assert name in extra, f'{name} is in no extra of setup.cfg'
      continue
    given = {d.lower().replace('_', '-') for d in distributions[name]}
    assert given & listed, f'setup.cfg does not list {name}'


def test_no_requirement_stands_twice():
  listed = requirements('options', 'install_requires')
  assert len(listed) == len(set(listed))
