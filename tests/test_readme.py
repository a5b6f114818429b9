"""Each `python main.py` line of the documents parses, its config builds."""

import pathlib
import re
import shlex
import sys

import pytest
from absl import flags

from vit22b_jax import cli
from vit22b_jax import commands as commands_lib

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted(
  path
  for path in ROOT.rglob('README.md')
  if not any(part.startswith('.') for part in path.relative_to(ROOT).parts)
)


def commands():
  """(document, arguments) of each command line, continuation lines joined."""
  for path in DOCUMENTS:
    text = path.read_text().replace('\\\n', ' ').replace('$i', '0')
    text = text.replace('--config=...', '--config=configs/digits_vit22b_ti.py')
    text = re.sub(r'(--[\w.]+=)[NI]\b', r'\g<1>0', text)
    text = text.replace('python main.py ...', '')  # any command
    flags_of = r'\bpython main\.py +(--(?:="[^"\n]*"|[^\n`|#&>"])*)'
    for line in re.findall(flags_of, text):
      arguments = shlex.split(line.removesuffix(' 2'))
      yield str(path.relative_to(ROOT)), arguments


COMMANDS = list(commands())


def parsed(arguments):
  """The flags' values of a command."""
  sys.modules.pop('config_config', None)  # what config_flags loaded last
  argv = ['main.py', *arguments]
  values = flags.FlagValues()
  cli.define_flags(values, argv)
  cli.parse_or_exit(argv, values)
  return values


def test_documents_have_commands():
  assert {document for document, _ in COMMANDS} >= {
    'README.md',
    'experiments/scaling/README.md',
  }


@pytest.mark.parametrize(
  ('document', 'arguments'),
  COMMANDS,
  ids=[' '.join(arguments)[:80] for _, arguments in COMMANDS],
)
def test_a_command_parses_and_its_config_builds(document, arguments):
  del document
  values = parsed(arguments)
  if values.config is None or values.config.task == 'fid':
    return
  config = values.config
  with config.unlocked():  # files that the reader brings
    config.init_from = ''
  commands_lib.validate(config)
