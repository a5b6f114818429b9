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
    if row['status'] == 'done' and row.get('machine') == machine
  }
  parts = [
    f'{", ".join(machine["devices"])}; jax {machine["jax"]}, Python '
    f'{machine["python"]}; {len(rows)} of {len(found["rows"])} rows done.',
    parity({n: r for n, r in rows.items() if 'relative_error' in r}),
    speed({n: r for n, r in rows.items() if 'images_per_second' in r}),
    trained({n: r for n, r in rows.items() if 'evaluation' in r}),
  ]
  (folder / 'results.md').write_text('\n\n'.join(filter(None, parts)) + '\n')


def parity(rows: dict[str, Any]) -> str:
  """Returns the table of differences from the CPU; '' without a row."""
  lines = []
  for name, row in rows.items():
    error = row['relative_error']
    worst = max(error.values()) if isinstance(error, dict) else error
    lines.append((name, f'{worst:.2g}'))
  return _table(('what', '#largest relative difference'), lines)


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
  """Returns the table of trainings; '' without a row."""
  lines = [
    (
      name,
      row['arguments']['duration'],
      *(
        f'{row["evaluation"][key]:.3f}' if key in row['evaluation'] else '-'
        for key in ('top1', 'top5', 'auroc')
      ),
    )
    for name, row in rows.items()
  ]
  columns = ('training', 'length', '#top-1', '#top-5', '#AUROC')
  return _table(columns, lines)


def _table(columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
  return documents.table(columns, lines) if lines else ''


def _gib(count: int | None) -> str:
  return '-' if count is None else f'{count / _GIB:.2f}'


if __name__ == '__main__':
  write(pathlib.Path(__file__).parent)
