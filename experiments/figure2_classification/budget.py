"""The runs at a budget that can tell blocks apart, on the whole lossless sets.

Three stages, each of which needs the rows of the one before, and two more:

1. `setting`: Ti in patches of 8 beside models of half its width in patches of
   8 and of 4, each for about ten minutes of one core; the best one is used.
2. `search`: each block at three rates, one seed, a quarter of the budget; the
   best rate by the validation part is the block's.
3. `seeds`: the whole budget at that rate, three seeds of the two blocks that
   are compared and one of the others.
4. `control`: ViT at the rate of ViT-22B, where their rates differ, so that
   a lead can't be that of a rate.
5. `strong`: these two on CIFAR-10 by the recipe `:strong` at its own rate.

The rest is the paper's recipe: AdamW, halved at 30, 60 and 90 % of the run,
flips.
"""

from typing import Any

from experiments.runner import Cell, Row, Rows

DATA = ('cifar10', 'cifar100')
COMPARED = ('vit', 'vit22b')
BLOCKS = (*COMPARED, 'vit22b_mlp_norm', 'released')
BATCH = 64
EPOCHS = 12
RATES = (2.5e-4, 5e-4, 1e-3)
# Of the first stage, the released code's default; and that of `:strong`.
RATE = 1e-3
# Either has twelve blocks and three heads, as Ti. Steps of the first stage.
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
  'patch8': (750, {'model.patch_size': 8}),
  'patch8_narrow': (
    3300,
    {'model.patch_size': 8, 'model.width': 96, 'model.mlp_dim': 384},
  ),
  'patch4_narrow': (1050, {'model.width': 96, 'model.mlp_dim': 384}),
}


def cells(rows: Rows) -> list[Cell]:
  """Lists what can be run by now."""
  found = [_setting(name) for name in SETTINGS]
  setting = chosen_setting(rows)
  if setting is None:
    return found
  for data in DATA:
    found += [_search(data, b, setting, r) for r in RATES for b in BLOCKS]
    rates = {block: chosen_rate(rows, data, block) for block in BLOCKS}
    found += [
      _whole('seeds', data, block, setting, rate, seed)
      for seed in range(3)
      for block, rate in rates.items()
      if rate is not None and (seed == 0 or block in COMPARED)
    ]
    own, other = (rates[block] for block in COMPARED)
    if own is not None and other not in (None, own):
      found.append(_whole('control', data, 'vit', setting, other, 0))
  return found + [
    _whole('strong', 'cifar10', block, setting, RATE, 0) for block in COMPARED
  ]


def chosen_setting(rows: Rows) -> str | None:
  """Returns the better setting on validation; None before both are known."""
  found = [row for row in rows.values() if row['stage'] == 'setting']
  if len(found) < len(SETTINGS):
    return None
  return max(found, key=_accuracy)['setting']


def chosen_rate(rows: Rows, data: str, block: str) -> float | None:
  """Returns a block's best rate on validation; None before all are known."""
  found = searched(rows, data, block)
  if len(found) < len(RATES):
    return None
  return max(found.values(), key=_accuracy)['rate']


def searched(rows: Rows, data: str, block: str) -> dict[float, Row]:
  """Maps rates to a block's runs of the search."""
  return {
    row['rate']: row
    for row in rows.values()
    if (row['stage'], row['data'], row['block']) == ('search', data, block)
  }


def _accuracy(row: Row) -> float:
  return -1.0 if row['val_top1'] is None else row['val_top1']


def _setting(name: str) -> Cell:
  steps, _ = SETTINGS[name]
  keys = {'eval.every': '25%', 'eval.test': False}
  return _cell(
    'setting', 'cifar10', 'vit22b', name, RATE, 0, f'{steps} steps', keys
  )


def _search(data: str, block: str, setting: str, rate: float) -> Cell:
  duration = f'{EPOCHS // 4} epochs'
  keys = {'eval.test': False}
  return _cell('search', data, block, setting, rate, 0, duration, keys)


def _whole(
  stage: str, data: str, block: str, setting: str, rate: float, seed: int
) -> Cell:
  duration = f'{EPOCHS} epochs'
  return _cell(stage, data, block, setting, rate, seed, duration, {})


def _cell(
  stage: str,
  data: str,
  block: str,
  setting: str,
  rate: float,
  seed: int,
  duration: str,
  keys: dict[str, Any],
) -> Cell:
  _, model = SETTINGS[setting]
  word = ':strong' if stage == 'strong' else ''
  return Cell(
    name=f'{stage}_{data}_{block}_{setting}_{rate:g}_seed{seed}',
    config=f'configs/{data}_vit22b_ti.py{word}',
    keys={
      'model.block': block,
      **model,
      'batch_size': BATCH,
      'optim.learning_rate': rate,
      'duration': duration,
      'checkpoint.minutes': 10.0,
      'eval.batch_size': 250,
      'log.every': '50 steps',
      'log.tensorboard': False,
      'seed': seed,
      **keys,
    },
    facts={
      'stage': stage,
      'data': data,
      'block': block,
      'setting': setting,
      'rate': rate,
      'seed': seed,
      'duration': duration,
      'batch_size': BATCH,
    },
  )
