"""What each array of a training state is split over, as text under golden/.

    python -m tests.helpers.golden_shardings

A line is the array's place in the state, its shape and the mesh axis of each
dimension. What is alike shares one line, with its number in front: blocks, the
two moments of Adam, the networks of both directions.
"""

import collections
import importlib
import os
import pathlib
import re

FOLDER = pathlib.Path(__file__).parents[1] / 'golden' / 'shardings'
MESH = {'data': 2, 'fsdp': 2, 'tensor': 2}
# Config and what is changed of it, for a state that has every part.
CASES = {
  'vit22b_s': ('cifar100_vit22b_s', {'optim.ema': 0.9}),
  'vit_l': ('cifar100_vit_l', {'model.dtype': 'float16'}),
  'vit22b_22b': ('vit22b_22b', {}),
  'vitunet_s': ('apple2orange_vitunet_s', {'batch_size': 4}),
}


def text(case: str) -> str:
  """The golden file's content, from shapes alone."""
  import jax

  from vit22b_jax.plan import planner
  from vit22b_jax.runtime import sharding

  name, overrides = CASES[case]
  config = importlib.import_module(f'configs.{name}').get_config()
  config.update_from_flattened_dict(overrides)
  config.data.dir = '/nowhere'  # sizes as they are known
  task = planner.make_task(config, sharding.make_mesh(**MESH))
  lines = collections.Counter()
  state = task.abstract_state.to_dict()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    place = jax.tree_util.keystr(path, simple=True, separator='/')
    place = re.sub(r'(?<=block_)\d+|(?<=gen_)[ab]+|(?<=disc_)[ab]', '*', place)
    place = re.sub('(?<=/)(mu|nu)(?=/)', 'moment', place)
    spec = list(leaf.sharding.spec) + [None] * leaf.ndim
    split = ', '.join(map(_axis, spec[: leaf.ndim])) or 'whole'
    lines[f'{place} {list(leaf.shape)}: {split}'] += 1
  return ''.join(f'{count:3} {line}\n' for line, count in lines.items())


def _axis(axis) -> str:
  if axis is None:
    return '-'
  return axis if isinstance(axis, str) else '+'.join(axis)


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
  FOLDER.mkdir(exist_ok=True)
  for case in CASES:
    (FOLDER / f'{case}.txt').write_text(text(case))
