"""Counts the parameters of every block in every size; allocates none of them.

python -m experiments.table1_parameters.count --workdir=FOLDER
"""

import argparse
import collections
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit22b_jax.models import vit
from vit22b_jax.runtime import workdir as workdir_lib

COUNTS = 'counts.json'
# What the released code counts by, and what the literature does.
SETTINGS = {
  'released': {'image_size': 32, 'num_classes': 10},
  'literature': {'image_size': 224, 'num_classes': 1000, 'head': 'linear'},
}
PATCH = 16


def terms(block: str, size: str, setting: str) -> dict[str, int]:
  """Parameters by name, those of all blocks together.

  Args:
    block: a row of `vit.PRESETS`.
    size: a row of `vit.VARIANTS`.
    setting: a row of SETTINGS.
  """
  fields: dict[str, Any] = dict(SETTINGS[setting])
  side = fields.pop('image_size')
  model = vit.build(block, size, patch_size=PATCH, **fields)
  shapes = jax.eval_shape(
    lambda x: nn.unbox(model.init(jax.random.key(0), x)['params']),
    jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
  )
  found: collections.Counter[str] = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    first, *rest = (key.key for key in path)
    name = 'block' if first.startswith('block_') else first
    found['/'.join([name, *rest])] += math.prod(leaf.shape)
  return dict(found)


def main() -> None:
  """Writes counts.json and versions.json into the workdir."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir', required=True)
  folder = workdir_lib.Workdir(parser.parse_args().workdir)
  counts = [
    {'block': block, 'size': size, 'setting': setting, 'terms': found}
    for setting in SETTINGS
    for size in vit.VARIANTS
    for block in vit.PRESETS
    for found in [terms(block, size, setting)]
  ]
  devices = [f'{d.platform}:{d.device_kind}' for d in jax.devices()]
  folder.write_json(workdir_lib.VERSIONS, workdir_lib.versions(devices))
  folder.write_json(COUNTS, {'counts': counts})


if __name__ == '__main__':
  main()
