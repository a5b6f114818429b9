"""Writes results.md of the accelerator's results.json.

python -m experiments.accelerator.tables
"""

import json
import pathlib
from typing import Any

from experiments import documents

_GIB = 2**30


def write(folder: pathlib.Path) -> None:
  """Writes results.md beside a folder's results.json."""
  found = json.loads((folder / 'results.json').read_text())
  machine = found['machine']
  rows = {
    name: row
    for name, row in found['rows'].items()
    if row['status'] != 'failed' and row.get('machine') == machine
  }
  done = sum(row['status'] == 'done' for row in rows.values())
  parts = [
    f'{", ".join(machine["devices"])}; jax {machine["jax"]}, Python '
    f'{machine["python"]}; {done} of {len(found["rows"])} rows done.',
    parity({n: r for n, r in rows.items() if 'relative_error' in r}),
    speed({n: r for n, r in rows.items() if 'images_per_second' in r}),
    trained({n: r for n, r in rows.items() if 'stability' in r}),
  ]
  (folder / 'results.md').write_text('\n\n'.join(filter(None, parts)) + '\n')


def parity(rows: dict[str, Any]) -> str:
  """Returns the table of differences from the CPU; '' without a row."""
  lines = [
    (name, of, f'{error:.2g}')
    for name, row in rows.items()
    for of, error in row['relative_error'].items()
  ]
  return _table(('what', 'of', '#largest relative difference'), lines)


def speed(rows: dict[str, Any]) -> str:
  """Returns the table of times and memory; '' without a row."""
  lines = [
    (
      name,
      f'{row["milliseconds"]:.1f}',
      f'{row["images_per_second"]:,.0f}',
      f'{row["mfu"]:.1%}' if 'mfu' in row else '-',
      _gib(row.get('peak_bytes')),
      _gib(row.get('planned_bytes')),
    )
    for name, row in rows.items()
  ]
  columns = ('step', '#ms', '#images/s', '#MFU', '#peak GiB', '#planned GiB')
  return _table(columns, lines)


def trained(rows: dict[str, Any]) -> str:
  """Returns the table of trainings, also unfinished ones; '' without a row."""
  lines = []
  for name, row in rows.items():
    found, scores = row['stability'], row['evaluation']
    peaks = [found['peak'][key] for key in ('max_logit', 'max_abs_grad')]
    explosion, validated = found['explosion'], row['validated']
    lines.append(
      (
        name,
        f'{row["steps"]:,} of {row["arguments"]["duration"]}',
        'never' if explosion is None else f'{explosion:,}',
        *(f'{peak[0]:,.4g} ({peak[1]:,})' if peak else '-' for peak in peaks),
        '-' if validated is None else f'{validated:.3f}',
        *(
          f'{scores[key]:.3f}' if key in scores else '-'
          for key in ('top1', 'top5', 'auroc')
        ),
      )
    )
  columns = (
    'training',
    '#steps',
    '#explodes at step',
    '#largest logit (step)',
    '#largest gradient (step)',
    '#validated top-1',
    '#test top-1',
    '#top-5',
    '#AUROC',
  )
  return _table(columns, lines)


def _table(columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
  return documents.table(columns, lines) if lines else ''


def _gib(count: int | None) -> str:
  return '-' if count is None else f'{count / _GIB:.2f}'


if __name__ == '__main__':
  write(pathlib.Path(__file__).parent)
