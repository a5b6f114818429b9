"""Plans every size on 1 to 4,096 TPU chips and on GPUs: sweep.json, by rows.

    python -m experiments.scaling.sweep

Weak scaling keeps the images of a chip, strong scaling the batch. Stopped and
started again it goes on; delete a row to have it made anew. Needs the extras
`tpu` and `plan-gpu`, no accelerator.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from configs import imagenet_vit22b_l
from vit22b_jax import errors
from vit22b_jax.plan import planner, topologies

HERE = pathlib.Path(__file__).parent
SWEEP = HERE / 'sweep.json'

# Slices of TPU v4 by their chips.
SLICES = {
  1: 'v4:1x1x1',
  4: 'v4:2x2x1',
  64: 'v4:4x4x4',
  512: 'v4:8x8x8',
  4096: 'v4:16x16x16',
}
VARIANTS = ('Ti', 'S', 'B', 'L', 'H', '22B')
PRESETS = ('data', 'fsdp', 'fsdp+tensor')
# GPUs by their names, with as many images as a chip in weak scaling: a card of
# 24 GB, an H100 and a node of them.
GPUS = (('rtx4090', 1), ('h100', 1), ('h100', 8))
GPU_VARIANTS = ('S', 'B', 'L', 'H')
CHIP_BATCH = 64  # images of a chip in weak scaling
BATCH = 16_384  # images of a step in strong scaling

_KEPT = (
  'hardware_flops_per_device',
  'memory_traffic_bytes',
  'fits',
  'hbm_bytes_per_device',
  'hbm_capacity_bytes',
  'mesh',
  'memory',
  'compile_seconds',
  'predicted_step_seconds',
  'predicted_seconds',
  'predicted_mfu_no_overlap',
  'predicted_mfu_overlap',
  'versions',
)


def cells() -> Iterator[dict[str, Any]]:
  """Yields what is planned: scaling (or GPU), variant, preset, chips, batch."""
  for variant in VARIANTS:
    for preset in PRESETS:
      for chips in SLICES:
        if chips == 1 and preset != 'data':
          continue  # one chip has nothing to split
        yield {
          'scaling': 'weak',
          'variant': variant,
          'sharding': preset,
          'chips': chips,
          'batch_size': CHIP_BATCH * chips,
        }
    for chips in SLICES:
      if chips >= 64:
        yield {
          'scaling': 'strong',
          'variant': variant,
          'sharding': 'fsdp',
          'chips': chips,
          'batch_size': BATCH,
        }
  for name, count in GPUS:
    for variant in GPU_VARIANTS:
      yield {
        'scaling': name,
        'variant': variant,
        'sharding': 'data' if count == 1 else 'fsdp',
        'chips': count,
        'batch_size': CHIP_BATCH * count,
      }


def _attention(cell: dict[str, Any]) -> str:
  return 'xla' if cell['scaling'] in ('weak', 'strong') else 'cudnn'


def topology_of(cell: dict[str, Any]) -> str:
  """Returns the hardware of a cell by its name."""
  if cell['scaling'] in ('weak', 'strong'):
    return SLICES[cell['chips']]
  return f'{cell["scaling"]}:{cell["chips"]}'


def config_of(cell: dict[str, Any]) -> Any:
  """Returns L's recipe, ImageNet at 224 px, at another size and batch."""
  config = imagenet_vit22b_l.get_config()
  with config.unlocked():
    config.model.variant = cell['variant']
    config.sharding = cell['sharding']
    config.batch_size = cell['batch_size']
    config.optim.accumulate = 1
    config.model.attention = _attention(cell)
    # Crops and flips alone, which compile a minute faster than RandAugment.
    config.data.augment = 'standard'
    for key in ('load_size', 'crop_scale', 'mixup'):
      config.data[key] = None
  return config


def row(cell: dict[str, Any]) -> dict[str, Any]:
  """Returns a cell with its plan, or the reason why there is none."""
  hardware = topologies.find(topology_of(cell))
  try:
    plan = planner.plan(config_of(cell), hardware)
  except errors.UserError as error:
    return {**cell, 'fits': False, 'refused': str(error)}
  return {**cell, **{key: plan.get(key) for key in _KEPT}}


def main() -> None:
  """Makes the rows that are missing."""
  rows = json.loads(SWEEP.read_text()) if SWEEP.exists() else []
  keys = next(cells()).keys()
  done = {tuple(r[key] for key in keys) for r in rows}
  for cell in cells():
    if tuple(cell.values()) in done:
      continue
    rows.append(row(cell))
    SWEEP.write_text(json.dumps(rows, indent=1) + '\n')
    last = rows[-1]
    print(
      *cell.values(),
      'fits' if last['fits'] else last.get('refused', 'does not fit'),
      last.get('predicted_mfu_no_overlap'),
      flush=True,
    )


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')  # libtpu must not look for TPUs
  main()
