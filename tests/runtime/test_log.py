"""What is shown of the package's log, and of other libraries'."""

import logging
import subprocess
import sys

import pytest

from vit22b_jax.runtime import log


@pytest.mark.parametrize(
  ('name', 'path', 'level', 'wanted'),
  [
    ('jax._src.xla_bridge', '/x.py', logging.WARNING, True),
    ('jax._src.xla_bridge', '/x.py', logging.INFO, False),
    ('jax._src.compiler', '/x.py', logging.WARNING, False),
    ('absl', '/x/orbax/checkpoint/y.py', logging.ERROR, False),
    ('absl', '/x.py', logging.ERROR, True),
    ('absl', f'{log._PACKAGE}/data/loading.py', logging.INFO, True),
  ],
)
def test_what_is_shown_of_others(name, path, level, wanted):
  record = logging.LogRecord(name, level, path, 1, 'text', (), None)
  assert log._is_wanted(record) == wanted


def test_jax_tells_of_a_gpu_that_it_does_not_use():
  """A real process, with jax's own logger."""
  program = (
    'from absl import app, logging\n'
    'import logging as python_logging\n'
    'from vit22b_jax.runtime import log\n'
    'def main(_):\n'
    '  log.show()\n'
    '  from jax._src import xla_bridge\n'
    '  xla_bridge.logger.warning("An NVIDIA GPU may be present")\n'
    'app.run(main)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert 'warning: An NVIDIA GPU may be present' in done.stderr
