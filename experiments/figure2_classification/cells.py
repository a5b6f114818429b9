"""The runs behind Figure 2: either block, by size, set and seed.

At full scale each runs at the paper's image size and at 32 px, patch 4, for the
200 epochs of its config. At CPU scale CIFAR-10 is cut into patches of 8, which
leaves 16 tokens of the full scale's 64 or 196, and a size's budget is a few
hundred steps, the same for both blocks. `real` is larger: see `budget`.
"""

from experiments.figure2_classification import budget
from experiments.runner import Cell, Rows

SEEDS = (0, 1, 2)
BLOCKS = ('vit', 'vit22b')
BATCH = 64
# Steps of a run at CPU scale: S costs four times as much a step.
STEPS = {'Ti': 400, 'S': 120}


def cells(scale: str, rows: Rows) -> list[Cell]:
  """Lists all runs of a scale; seeds come last, so that a part is balanced."""
  if scale == 'real':
    return budget.cells(rows)
  if scale == 'full':
    return [
      _full(name, block, size, words, seed)
      for seed in SEEDS
      for name in ('cifar10', 'cifar100')
      for words in (':paper', '')
      for size in ('Ti', 'S', 'B')
      for block in BLOCKS
    ]
  return [
    _small(block, size, seed)
    for size in STEPS
    for seed in SEEDS
    for block in BLOCKS
  ]


def _full(name: str, block: str, size: str, words: str, seed: int) -> Cell:
  setting = words.removeprefix(':') or 'patch4'
  return Cell(
    name=f'{name}_{block}_{size}_{setting}_seed{seed}',
    config=f'configs/{name}_{block}_{size.lower()}.py{words}',
    keys={'seed': seed},
    facts={
      'data': name,
      'block': block,
      'size': size,
      'setting': setting,
      'seed': seed,
    },
  )


def _small(block: str, size: str, seed: int) -> Cell:
  steps = STEPS[size]
  return Cell(
    name=f'cifar10_{block}_{size}_patch8_seed{seed}',
    config=f'configs/cifar10_{block}_{size.lower()}.py',
    keys={
      'model.patch_size': 8,
      'batch_size': BATCH,
      'duration': f'{steps} steps',
      'checkpoint.every': '200 steps',
      'eval.every': '1000 steps',
      'eval.batch_size': 250,
      'eval.checkpoint': 'last',
      'data.val_fraction': 0.02,
      'log.every': '20 steps',
      'log.tensorboard': False,
      'seed': seed,
    },
    facts={
      'data': 'cifar10',
      'block': block,
      'size': size,
      'setting': 'patch8',
      'seed': seed,
      'steps': steps,
      'batch_size': BATCH,
    },
  )
