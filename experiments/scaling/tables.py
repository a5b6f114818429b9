"""Turns plans into the tables of README.md and two pictures.

python -m experiments.scaling.tables
"""

import json
import pathlib
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments import documents
from experiments.scaling import sweep

HERE = pathlib.Path(__file__).parent
_PRESETS = dict(zip(sweep.PRESETS, ('o-', 's-', '^-'), strict=True))


def load() -> list[tuple[str, dict[str, Any]]]:
  """Reads the named plans as (name, content), the full size first."""
  files = sorted((HERE / 'plans').glob('*.json'))
  return [(file.stem, json.loads(file.read_text())) for file in files]


def rows() -> list[dict[str, Any]]:
  """Reads the rows of the sweep."""
  return json.loads(sweep.SWEEP.read_text())


def plans_table() -> str:
  """Returns a row for each named plan."""
  columns = (
    *('hardware', 'batch, parts, remat', '#GiB of', '#largest batch'),
    *('#compiled, s', '#recomputed', '#s a step', '#utilization'),
    *('#with overlap', '#chip-hours'),
  )
  return documents.table(columns, [_plan_row(*named) for named in load()])


def _plan_row(name: str, plan: dict[str, Any]) -> list[str]:
  config = plan['config']
  size = name.split('_')[0].upper()
  mesh = ' x '.join(str(n) for n in plan['mesh'].values())
  cells = [
    f'{size} on {plan["topology"]}, mesh {mesh}',
    f'{plan["batch_size"]:,}, {config["optim"]["accumulate"]}, '
    f'{config["model"]["remat"]}',
    f'{_gib(plan):.1f} / {plan["hbm_capacity_bytes"] / 2**30:.0f}',
    f'{plan["largest_batch_size"]:,}' if plan['fits'] else 'none',
    f'{plan["compile_seconds"]:.0f}',
  ]
  if plan['predicted_step_seconds'] is None:
    return [*cells, 'does not fit', '', '', '', '']
  again = plan['recomputed_flops_per_device']
  verdict = '' if plan['fits'] else ' (does not fit)'
  return [
    *cells,
    f'{again / plan["hardware_flops_per_device"]:.1%}',
    f'{plan["predicted_step_seconds"]:.3g}{verdict}',
    f'{plan["predicted_mfu_no_overlap"]:.3f}',
    f'{plan["predicted_mfu_overlap"]:.3f}',
    f'{plan["predicted_chip_hours"]:,.0f}',
  ]


def sweep_table() -> str:
  """Returns utilization and memory by size, chips and preset: weak scaling."""
  found = {
    (r['variant'], r['chips'], r['sharding']): r
    for r in rows()
    if r['scaling'] == 'weak'
  }
  lines = [
    [
      f'{variant}, {preset}',
      *(
        _cell(found.get((variant, n, preset if n > 1 else 'data')))
        for n in sweep.SLICES
      ),
    ]
    for variant in sweep.VARIANTS
    for preset in sweep.PRESETS
  ]
  columns = ['size, preset', *(f'#{n:,}' for n in sweep.SLICES)]
  return documents.table(columns, lines)


def _cell(row: dict[str, Any] | None) -> str:
  """Returns predicted utilization and memory of one cell of the sweep."""
  if row is None:
    return ''
  if 'refused' in row:
    return 'refused'
  if not row['fits']:
    return f'no ({_gib(row):.1f})'
  return f'{row["predicted_mfu_no_overlap"]:.2f} ({_gib(row):.1f})'


def strong_table() -> str:
  """Returns seconds of a step and the busiest links: strong scaling."""
  lines = []
  for r in rows():
    if r['scaling'] != 'strong' or not r['fits']:
      continue
    seconds = r['predicted_seconds']
    links = sum(seconds['communication'].values())
    most = links > max(seconds['matmul'], seconds['memory'])
    lines.append(
      [
        r['variant'],
        f'{r["chips"]:,}',
        f'{r["predicted_step_seconds"]:.3g}',
        f'{seconds["matmul"]:.3g}',
        f'{seconds["memory"]:.3g}',
        f'**{links:.3g}**' if most else f'{links:.3g}',
        f'{r["predicted_mfu_no_overlap"]:.2f}',
      ]
    )
  columns = ('size', '#chips', '#s a step', '#products', '#memory', '#links')
  return documents.table((*columns, '#utilization'), lines)


def gpus_table() -> str:
  """Returns memory and time of each size on GPUs and on a TPU v4."""
  found = {(r['variant'], r['scaling'], r['chips']): r for r in rows()}
  lines = [
    [
      variant,
      *(_cell(found.get((variant, *gpu))) for gpu in sweep.GPUS),
      _cell(found.get((variant, 'weak', 1))),
    ]
    for variant in sweep.GPU_VARIANTS
  ]
  gpus = [f'#{name}:{count}' for name, count in sweep.GPUS]
  return documents.table(['size', *gpus, '#v4:1x1x1'], lines)


def draw() -> None:
  """Draws memory and step time by chips, a panel for each size."""
  panels = (
    ('memory.png', 'GiB of a chip', _gib),
    (
      'seconds.png',
      'predicted s a step',
      lambda r: r['predicted_step_seconds'],
    ),
  )
  for file, label, value in panels:
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True)
    for axis, variant in zip(axes.flat, sweep.VARIANTS, strict=True):
      _panel(axis, [r for r in rows() if r['variant'] == variant], value)
      axis.set_title(f'ViT-22B-{variant}')
      if file == 'memory.png':
        axis.axhline(32, color='grey', linestyle=':', linewidth=1)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[1]:
      axis.set_xlabel('TPU v4 chips')
    for axis in axes[:, 0]:
      axis.set_ylabel(label)
    figure.suptitle(
      f'Planned, not measured: {sweep.CHIP_BATCH} images a chip (224 px, patch '
      f'14); dashed: {sweep.BATCH:,} images in all'
    )
    figure.tight_layout()
    figure.savefig(HERE / file, dpi=100, metadata={'Software': None})
    plt.close(figure)


def _gib(row: dict[str, Any]) -> float:
  return row['hbm_bytes_per_device'] / 2**30


def _panel(axis, rows, value) -> None:
  """Draws one size: a line for each preset, and one for strong scaling."""
  for preset, style in _PRESETS.items():
    line = [
      (r['chips'], value(r))
      for r in rows
      if r['scaling'] == 'weak'
      and 'refused' not in r
      and value(r) is not None
      and (r['sharding'] == preset or r['chips'] == 1)
    ]
    x, y = zip(*line, strict=True) if line else ((), ())
    axis.plot(x, y, style, label=preset, markersize=4)
  strong = [
    (r['chips'], value(r))
    for r in rows
    if r['scaling'] == 'strong' and r['fits']
  ]
  if strong:
    axis.plot(
      *zip(*strong, strict=True),
      'k--D',
      label='fsdp, fixed batch',
      markersize=4,
    )
  axis.set_xscale('log')
  axis.set_xticks(list(sweep.SLICES), [f'{n:,}' for n in sweep.SLICES])
  axis.minorticks_off()
  axis.set_xlim(0.7, 6000)
  if any(len(line.get_xdata()) for line in axis.lines):
    axis.set_yscale('log')


TABLES = {
  'plans': plans_table,
  'sweep': sweep_table,
  'strong': strong_table,
  'gpus': gpus_table,
}


def render(text: str) -> str:
  """Returns a README with new tables after the `<!-- NAME -->` comments."""
  for name, table in TABLES.items():
    text = documents.fill(text, table(), f'<!-- {name} -->')
  return text


def main() -> None:
  """Writes tables and pictures."""
  readme = HERE / 'README.md'
  readme.write_text(render(readme.read_text()))
  draw()


if __name__ == '__main__':
  main()
