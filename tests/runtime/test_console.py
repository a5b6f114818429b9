"""Tables of parameters: what is alike is told once, and the sum is whole."""

import numpy as np

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
