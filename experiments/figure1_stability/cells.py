"""The runs behind Figure 1: one switch at a time, at one initialisation.

All start from the authors' first block (`released_unnormed`) on CIFAR-10 at
patch 16, batch 64, AdamW at a constant rate, as in the paper's Figure 1(a).
Each variant flips switches; norms have no parameters in that block, so that all
variants share every initial weight.

Stages: `bisect` looks for the lowest exploding rate of each variant in short
runs that stop at an explosion, `seeds` repeats that rate and half of it,
`large` watches size B at the code's rate without stopping (two seeds of the
variants that come near an explosion), `long` runs 3,000 steps.
"""

from typing import Any

from experiments.runner import Cell, Rows
from vit22b_jax.report import traces

CONFIG = 'configs/cifar10_vit22b_s.py'
CAP = traces.CAP  # where the paper cuts its curves: an explosion here
RATE = 1e-3  # the released code's default
STEPS = 150  # of a short run
START_UP = 100  # steps within which an explosion counts as an early one
LONG = 3000  # steps: twice what the paper's explosion took

# What is flipped. Eq. 2 is pre_norm+mlp_norm; sum_norm is what was released.
VARIANTS: dict[str, dict[str, Any]] = {
  'original': {},
  'pre_norm': {'model.pre_norm': True},
  'mlp_norm': {'model.mlp_norm': True},
  'sum_norm': {'model.sum_norm': True},
  'pre_norm+mlp_norm': {'model.pre_norm': True, 'model.mlp_norm': True},
  'no_qk_norm': {'model.qk_norm': False},
  'clip': {'optim.clip_norm': 10.0},
  'warmup': {'optim.warmup': '50 steps'},
  'pre_norm+no_qk_norm': {'model.pre_norm': True, 'model.qk_norm': False},
  'final_norm': {'model.final_norm': True},
  'init_vit': {'model.init': 'vit'},
}
MAIN = ('original', 'pre_norm', 'mlp_norm', 'sum_norm', 'pre_norm+mlp_norm')
WATCHED = ('original', 'mlp_norm', 'sum_norm', 'pre_norm')  # at size B
TRICKS = ('no_qk_norm', 'clip', 'warmup')
OTHERS = tuple(name for name in VARIANTS if name not in (*MAIN, *TRICKS))
# The lowest exponent at which each exploded on JPEG images; `real` repeats it.
EXPLODED = {
  'original': 1,
  'pre_norm': 3,
  'mlp_norm': 1,
  'sum_norm': 6,
  'pre_norm+mlp_norm': 4,
}
RECOVERY = 1500  # steps after which an exploded run has recovered, or has not
# Rates are RATE * 2**k. Below the first and above the last is not looked at.
EXPONENTS = range(-3, 9)


def cells(scale: str, rows: Rows) -> list[Cell]:
  """Lists what can be run by now: later cells need the rows of earlier ones."""
  if scale == 'full':
    return _full()
  if scale == 'real':
    return _real()
  return [
    *(cell for name in MAIN for cell in _bisect('S', name, rows)),
    *(_large(name) for name in WATCHED),
    *(cell for name in MAIN for cell in _seeds('S', name, rows)),
    *(cell for name in TRICKS for cell in _bisect('S', name, rows)),
    *(_long('Ti', name) for name in ('original', 'pre_norm+mlp_norm')),
    *(cell for name in OTHERS for cell in _bisect('S', name, rows)),
    _long('S', 'original'),
    *(cell for name in TRICKS for cell in _seeds('S', name, rows)),
    *(_large(name, seed=1) for name in ('original', 'mlp_norm')),
    *(cell for name in OTHERS for cell in _seeds('S', name, rows)),
  ]


def _large(variant: str, seed: int = 0) -> Cell:
  return _cell('B', variant, RATE, STEPS, seed, stage='large', stop=False)


def _long(size: str, variant: str) -> Cell:
  return _cell(size, variant, RATE, LONG, 0, stage='long', stop=False)


def _real() -> list[Cell]:
  """Lists runs that carry the findings, on lossless images; and recoveries.

  A recovery is a run at a rate that explodes, which goes on all the same,
  beside one with a pre-norm, which doesn't explode there.
  """
  return [
    *(
      _probe('S', name, EXPLODED[name] - half, seed, 'repeat')
      for seed in range(3)
      for name in MAIN
      for half in (0, 1)
    ),
    *_recoveries('S', RATE * 2.0 ** EXPLODED['original'], 0),
    *(_large(name) for name in WATCHED),
    *_recoveries('S', RATE * 2.0 ** EXPLODED['original'], 1),
    *_recoveries('B', RATE, 0),
  ]


def _recoveries(size: str, rate: float, seed: int) -> list[Cell]:
  accuracy = {
    'data.val_fraction': 0.1,
    'eval.every': '250 steps',
    'eval.checkpoint': 'last',
    'eval.test': True,
    'checkpoint.every': '250 steps',
  }
  return [
    _cell(
      size,
      variant,
      rate,
      RECOVERY,
      seed,
      stage='recovery',
      stop=False,
      keys={**VARIANTS[variant], **accuracy},
    )
    for variant in ('original', 'pre_norm')
  ]


def _full() -> list[Cell]:
  """Lists the paper's setting, strategies and each switch: B at 224 px."""
  strategies = {
    'tricks': (5e-4, {'optim.clip_norm': 10.0, 'model.dtype': 'bfloat16'}),
    'norm_and_penalty': (
      5e-4,
      {
        **VARIANTS['pre_norm+mlp_norm'],
        'optim.clip_norm': 10.0,
        'loss.input_gradient_penalty': 0.01,
      },
    ),
    **{name: (RATE, keys) for name, keys in VARIANTS.items()},
  }
  paper = {'model.dtype': 'float32', 'batch_size': 64}  # else :paper's
  return [
    _cell(
      'B',
      name,
      rate,
      LONG,
      seed,
      stage='long',
      stop=False,
      words=':paper',
      keys={**paper, **keys},
    )
    for seed in range(3)
    for name, (rate, keys) in strategies.items()
  ]


def bounds(size: str, variant: str, rows: Rows) -> tuple[int, int]:
  """Returns largest exponent without, lowest with an explosion, of seed 0.

  Each is one beyond EXPONENTS while none is known; neighbours: it's found.
  """
  low, high = EXPONENTS[0] - 1, EXPONENTS[-1] + 1
  for row in rows.values():
    if (row['stage'], row['size'], row['variant']) != ('bisect', size, variant):
      continue
    if row['explosion'] is None:
      low = max(low, row['exponent'])
    else:
      high = min(high, row['exponent'])
  return low, high


def _bisect(size: str, variant: str, rows: Rows) -> list[Cell]:
  """Lists probes so far, and the next one if the rate isn't found yet."""
  exponents = sorted(
    row['exponent']
    for row in rows.values()
    if (row['stage'], row['size'], row['variant']) == ('bisect', size, variant)
  )
  low, high = bounds(size, variant, rows)
  if high - low > 1:
    exponents.append((low + high) // 2)
  return [_probe(size, variant, k, 0, 'bisect') for k in exponents]


def _seeds(size: str, variant: str, rows: Rows) -> list[Cell]:
  """Seeds 1 and 2 at the lowest exploding rate and at half of it."""
  low, high = bounds(size, variant, rows)
  if high - low > 1:
    return []
  return [
    _probe(size, variant, k, seed, 'seeds')
    for k in (high, low)
    for seed in (1, 2)
    if k in EXPONENTS
  ]


def _probe(size: str, variant: str, k: int, seed: int, stage: str) -> Cell:
  return _cell(
    size, variant, RATE * 2.0**k, STEPS, seed, stage=stage, exponent=k
  )


def _cell(
  size: str,
  variant: str,
  rate: float,
  steps: int,
  seed: int,
  *,
  stage: str,
  stop: bool = True,
  words: str = '',
  keys: dict[str, Any] | None = None,
  **facts: Any,
) -> Cell:
  """Returns a run of `steps` steps that ends at an explosion, if `stop`."""
  duration = f'{steps} steps'
  return Cell(
    name=f'{stage}_{size}_{variant}_{rate:.3g}_seed{seed}',
    config=CONFIG + words,
    keys={
      'model.block': 'released_unnormed',
      'model.variant': size,
      'model.patch_size': 16,
      'batch_size': 64,
      'optim.learning_rate': rate,
      'optim.schedule': 'constant',
      'optim.decay': 'all',
      'optim.clip_norm': 0.0,
      'duration': duration,
      'checkpoint.every': '1000 steps',
      'eval.every': '1000 steps',
      'eval.batch_size': 100,
      'eval.test': False,
      'data.val_fraction': 0.01,
      'log.every': '50 steps',
      'log.tensorboard': False,
      'diagnostics.per_layer': True,
      'diagnostics.on_explosion': 'halt' if stop else 'record',
      'diagnostics.ignore': '0 steps',
      # The paper's cap alone counts, not jumps below it.
      'diagnostics.zscore': 1e9,
      'seed': seed,
      **(VARIANTS[variant] if keys is None else keys),
    },
    facts={
      'stage': stage,
      'size': size,
      'variant': variant,
      'rate': rate,
      'steps': steps,
      'seed': seed,
      **facts,
    },
  )
