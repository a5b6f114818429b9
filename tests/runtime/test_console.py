"""Tables of parameters: what is alike is told once, and the sum is whole."""

import contextlib
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


def test_the_first_step_is_said_to_compile(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  with contextlib.closing(console.Progress(3, 0)) as bar:
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
