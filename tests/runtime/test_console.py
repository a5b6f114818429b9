"""Tables of parameters: what is alike is told once, and the sum is whole."""

import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from vit22b_jax.runtime import console


def kernel(*shape):
  return {'kernel': np.zeros(shape)}


def test_one_block_stands_for_all():
  params = {f'block_{i:02}': kernel(3, 5) for i in range(7)}
  params['cls'] = np.zeros((1, 3))
  assert console.parameter_table(params).splitlines() == [
    '  block/kernel  [3, 5]  7 x 15',
    '  cls           [1, 3]       3',
    '  108 parameters',
  ]


def test_networks_of_many_arrays_are_a_row_each():
  generator = {f'conv_{i}': kernel(3, 3, 2, 5) for i in range(41)}
  params = {'gen_ab': generator, 'gen_ba': generator, 'disc_a': kernel(7)}
  assert console.parameter_table(params).splitlines() == [
    '  gen_ab  41 arrays  3,690',
    '  gen_ba  41 arrays  3,690',
    '  disc_a  1 arrays       7',
    '  7,387 parameters',
  ]


@pytest.mark.parametrize(
  ('name', 'path', 'level', 'wanted'),
  [
    ('jax._src.xla_bridge', '/x.py', logging.WARNING, True),
    ('jax._src.xla_bridge', '/x.py', logging.INFO, False),
    ('jax._src.compiler', '/x.py', logging.WARNING, False),
    ('absl', '/x/orbax/checkpoint/y.py', logging.ERROR, False),
    ('absl', '/x.py', logging.ERROR, True),
    ('absl', f'{console._PACKAGE}/data/loading.py', logging.INFO, True),
  ],
)
def test_what_is_shown_of_others(name, path, level, wanted):
  record = logging.LogRecord(name, level, path, 1, 'text', (), None)
  assert console._is_wanted(record) == wanted


def test_jax_tells_of_a_gpu_that_it_does_not_use():
  """A real process, with jax's own logger."""
  program = (
    'from absl import app, logging\n'
    'import logging as python_logging\n'
    'from vit22b_jax.runtime import console\n'
    'def main(_):\n'
    '  console.show_log()\n'
    '  from jax._src import xla_bridge\n'
    '  xla_bridge.logger.warning("An NVIDIA GPU may be present")\n'
    'app.run(main)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert 'warning: An NVIDIA GPU may be present' in done.stderr


def test_the_first_step_is_said_to_compile(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  with console.Progress(3, 0) as bar:
    with bar.compiling(first=True):
      said = capsys.readouterr().out
      time.sleep(1.2)
    shown = capsys.readouterr()
    with bar.compiling(first=False):
      pass
  assert said.startswith('Compiling the training step')
  assert shown.out == 'Compiled in 1 s.\n'
  assert 'compiling for 1 s' in shown.err
  assert capsys.readouterr().out == ''
  with pytest.raises(ValueError), console.Progress(3, 0).compiling(first=True):
    raise ValueError
  assert 'Compiled in' not in capsys.readouterr().out
