"""The rows of the accelerator's measurements, from most to least valuable.

Each row is a process of its own: either a function of `measure`, or a training
by main.py. `least` is the time below which a row isn't begun, `limit` the time
after which it is stopped.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

_BLOCKS = ('vit22b', 'vit', 'vit22b_mlp_norm', 'released')
# (variant, batch size, image size, patch)
_MODELS = (
  ('B', 128, 224, 16),
  ('S', 256, 224, 16),
  ('S', 512, 32, 4),
  ('L', 64, 224, 16),
)
# Parity of so many blocks, and their speed at B beside timm's, come before the
# trainings, which take most of the time.
_FIRST = 2
_TINY = (('Ti', 4, 32, 16),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One measurement.

  Attributes:
    name: of its row in results.json.
    kind: a function of `measure`, or 'train'.
    arguments: of that function; or `config` and keys of a training.
    least: seconds that must be left to begin it.
    limit: seconds after which it is stopped.
    data: the set that a training needs, 'cifar10' or 'cifar100'; '' for none.
  """

  name: str
  kind: str
  arguments: Mapping[str, Any]
  least: float = 20.0
  limit: float = 120.0
  data: str = ''


def all_rows(scale: str) -> Iterator[Row]:
  """Yields the rows of a scale: 'full' for a GPU or TPU, 'tiny' to try them."""
  tiny = scale == 'tiny'
  yield Row(name='golden files', kind='golden', arguments={})
  parity, speeds = list(_parity(tiny)), list(_speeds(tiny))
  yield from parity[:_FIRST]
  yield from speeds[: 2 * _FIRST]
  yield from _stability(tiny)
  yield from _accuracy(tiny)
  yield from parity[_FIRST:]
  yield from speeds[2 * _FIRST :]


def _parity(tiny: bool) -> Iterator[Row]:
  """Yields training steps beside the CPU's: each block, then a CycleGAN."""
  for block in _BLOCKS[:1] if tiny else _BLOCKS:
    yield Row(
      name=f'parity {block}',
      kind='parity',
      arguments={
        'block': block,
        'dtypes': ('float32', 'bfloat16'),
        'variant': 'Ti',
        'batch_size': 16,
        'image_size': 32,
        'patch': 8,
        'steps': 2 if tiny else 20,
        'depth': 2 if tiny else None,
      },
    )
  yield Row(
    name='parity CycleGAN',
    kind='parity',
    arguments={
      'dtypes': ('float32',),
      'batch_size': 1,
      'image_size': 64,
      'patch': 32 if tiny else 8,
      'steps': 1,
      'depth': 6 if tiny else 12,
    },
    limit=240,
  )


def _speeds(tiny: bool) -> Iterator[Row]:
  """Yields ours and timm's in turn, so that both meet the same machine."""
  repeats = 2 if tiny else 20
  for variant, batch_size, image_size, patch in _TINY if tiny else _MODELS:
    for block in ('vit22b', 'vit'):
      model = {
        'block': block,
        'variant': variant,
        'batch_size': batch_size,
        'image_size': image_size,
        'patch': patch,
        'repeats': repeats,
        'depth': 2 if tiny else None,
      }
      name = f'{block} {variant}/{patch} {image_size} px, batch {batch_size}'
      yield Row(
        name=f'ours {name}',
        kind='throughput',
        arguments={**model, 'dtype': 'bfloat16'},
        limit=180,
      )
      yield Row(name=f'timm {name}', kind='peer', arguments=model, limit=180)
  yield Row(
    name='CycleGAN ViTUnet-S',
    kind='throughput',
    arguments={
      'batch_size': 1,
      'image_size': 64 if tiny else 256,
      'patch': 32,
      'dtype': 'float32' if tiny else 'bfloat16',
      'repeats': repeats,
      'depth': 6 if tiny else 12,
    },
    limit=240,
  )
  yield Row(
    name='Inception, tap 2048',
    kind='inception',
    arguments={'batch_size': 2 if tiny else 64, 'repeats': repeats},
  )


def _stability(tiny: bool) -> Iterator[Row]:
  """Yields Figure 1 at the paper's scale: original, tricks, and norm."""
  steps = '3 steps' if tiny else '2000 steps'
  word = 'tiny' if tiny else 'paper'
  common = {
    'model.block': 'released_unnormed',
    'batch_size': 64,
    'duration': steps,
    'eval.every': steps,
    'optim.schedule': 'constant',
    'optim.decay': 'all',
    'diagnostics.on_explosion': 'record',
    'diagnostics.ignore': '0 steps',
    'eval.test': False,
  }
  original = {'optim.learning_rate': 1e-3, 'optim.clip_norm': 0.0}
  tricks = {'optim.learning_rate': 5e-4, 'optim.clip_norm': 10.0}
  for name, keys in (
    ('original', {**original, 'model.dtype': 'float32'}),
    ('tricks', {**tricks, 'model.dtype': 'bfloat16'}),
    ('norm', {**original, 'model.dtype': 'float32', 'model.mlp_norm': True}),
  ):
    yield Row(
      name=f'figure 1: {name}',
      kind='train',
      arguments={
        'config': f'configs/cifar10_vit22b_b.py:{word}',
        **common,
        **keys,
      },
      least=60,
      limit=600,
      data='cifar10',
    )


def _accuracy(tiny: bool) -> Iterator[Row]:
  """Yields Figure 2: S/4 at 32 px."""
  for data in ('cifar100', 'cifar10'):
    for block in ('vit', 'vit22b'):
      yield Row(
        name=f'figure 2: {block} S/4 on {data}',
        kind='train',
        arguments={
          'config': f'configs/{data}_{block}_s.py' + (':tiny' if tiny else ''),
          'duration': '3 steps' if tiny else '20 epochs',
          'eval.every': '25%',
          'model.dtype': 'float32' if tiny else 'bfloat16',
        },
        least=60,
        limit=900,
        data=data,
      )
