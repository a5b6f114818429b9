"""The runs behind Table 2: generators by data set.

At full scale each is its config's `:paper` recipe at 256 px, patch 32. At the
other scales images are smaller, patches in proportion, which keeps the 8 x 8
grid of patches, and all generators get the same steps. `space` is the ViT-S
whose tokens are resampled as a grid, for the question of patches alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.runner import Cell, Rows


@dataclasses.dataclass(frozen=True)
class Budget:
  """Gives all generators of a scale the same.

  Attributes:
    steps: of one image of each domain.
    image_size: pixels a side.
    samples: steps between two grids of sample images.
    keys: of the config, beside CycleGAN's recipe.
  """

  steps: int
  image_size: int
  samples: int
  keys: Mapping[str, Any]


CPU = Budget(steps=150, image_size=32, samples=100, keys={'fid.num': 'min'})
# Photographs of apples and oranges, FID over the whole test parts. Less of what
# holds a change back: no identity loss, half the cycle's weight, discriminators
# at full speed.
REAL = Budget(
  steps=1000,
  image_size=64,
  samples=250,
  keys={
    'checkpoint.every': '250 steps',
    'fid.num': 'all',
    'loss.lambda_cycle': 5.0,
    'loss.lambda_identity': 0.0,
    'loss.discriminator_factor': 1.0,
  },
)
# What Table 2 calls them: (config, words, keys).
GENERATORS: dict[str, tuple[str, str, dict[str, Any]]] = {
  'ViT-S': ('vitunet_s', '', {}),
  'ViT-22B-S': ('vit22bunet_s', '', {}),
  'ViT-B': ('vitunet_b', '', {}),
  'ResNet': ('vitunet_s', 'resnet', {}),
  'ViT-S space': ('vitunet_s', '', {'model.resample': 'space'}),
}


def cells(scale: str, rows: Rows) -> list[Cell]:
  """Lists all runs of a scale."""
  del rows
  if scale == 'full':
    return [
      _full(name, data)
      for data in ('apple2orange', 'monet2photo')
      for name in GENERATORS
    ]
  if scale == 'real':
    return [
      _scaled(name, 'cycle_gan/apple2orange', REAL) for name in GENERATORS
    ]
  return [
    _scaled(name, data, CPU)
    for data in ('cycle_gan/monet2photo', 'fruit')
    for name in GENERATORS
    if (name, data) != ('ViT-S space', 'fruit')  # see experiments/blockiness
  ]


def _full(name: str, data: str) -> Cell:
  config, word, keys = GENERATORS[name]
  words = ','.join(filter(None, (word, 'paper')))
  return Cell(
    name=f'{data}_{_slug(name)}',
    config=f'configs/{data}_{config}.py:{words}',
    keys=keys,
    facts={'data': f'cycle_gan/{data}', 'generator': name},
  )


def _scaled(name: str, data: str, budget: Budget) -> Cell:
  config, word, keys = GENERATORS[name]
  words = ','.join(filter(None, (word, 'cyclegan')))
  size, steps = budget.image_size, budget.steps
  patch = {} if word == 'resnet' else {'model.patch_size': size // 8}
  return Cell(
    name=f'{data.rpartition("/")[2]}_{_slug(name)}',
    config=f'configs/monet2photo_{config}.py:{words}',
    keys={
      'data.name': data,
      'data.image_size': size,
      'data.load_size': size * 9 // 8,
      'duration': f'{steps} steps',
      'checkpoint.every': '100 steps',
      'eval.every': '1000 steps',
      'eval.checkpoint': 'last',
      'log.every': '20 steps',
      'log.samples': f'{budget.samples} steps',
      'log.num_samples': 6,
      'log.tensorboard': False,
      # The paper's preset, with weights that need no download.
      'fid.weights': 'random:0',
      'fid.tap': 64,
      'fid.resize': 'tf1',
      'fid.quantize': 'truncate',
      **budget.keys,
      **patch,
      **keys,
    },
    facts={
      'data': data,
      'generator': name,
      'steps': steps,
      'image_size': size,
      'patch_size': size // 8,
    },
  )


def _slug(name: str) -> str:
  return name.lower().replace(' ', '_').replace('-', '_')
