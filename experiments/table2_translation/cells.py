"""The runs behind Table 2: generators by data set.

At full scale each is its config's `:paper` recipe at 256 px, patch 32. At CPU
scale images have 32 px and patches 4, which keeps the 8 x 8 grid of patches,
and all generators get the same few steps of CycleGAN's recipe. `space` is the
ViT-S whose tokens are resampled as a grid, for the question of patches alone.
"""

from typing import Any

from experiments.runner import Cell, Rows

STEPS = 150  # of one image of each domain
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
  return [
    _small(name, data)
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


def _small(name: str, data: str) -> Cell:
  config, word, keys = GENERATORS[name]
  words = ','.join(filter(None, (word, 'cyclegan')))
  patch = {} if word == 'resnet' else {'model.patch_size': 4}
  return Cell(
    name=f'{data.rpartition("/")[2]}_{_slug(name)}',
    config=f'configs/monet2photo_{config}.py:{words}',
    keys={
      'data.name': data,
      'data.image_size': 32,
      'data.load_size': 36,
      'duration': f'{STEPS} steps',
      'checkpoint.every': '100 steps',
      'eval.every': '1000 steps',
      'eval.checkpoint': 'last',
      'log.every': '20 steps',
      'log.samples': '100 steps',
      'log.num_samples': 6,
      'log.tensorboard': False,
      # The paper's preset, with weights that need no download.
      'fid.weights': 'random:0',
      'fid.tap': 64,
      'fid.resize': 'tf1',
      'fid.quantize': 'truncate',
      'fid.num': 'min',
      **patch,
      **keys,
    },
    facts={
      'data': data,
      'generator': name,
      'steps': STEPS,
      'image_size': 32,
      'patch_size': 4,
    },
  )


def _slug(name: str) -> str:
  return name.lower().replace(' ', '_').replace('-', '_')
