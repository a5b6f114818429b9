"""Writes the variants' rows in Markdown."""

from experiments import documents
from experiments.runner import Row, Rows
from experiments.table2_translation.tables import DIRECTIONS


def table(rows: Rows) -> str:
  """Returns distances of each variant, both directions in a cell."""
  return documents.table(
    (
      'variant',
      '#parameters',
      '#FID at tap 64',
      '#untrained',
      '#KID at tap 64',
      '#FID at tap 2048',
      '#untrained',
      '#KID at tap 2048',
      '#shared texture',
    ),
    [*(_line(row) for row in rows.values()), *_untouched(rows)],
  )


def _line(row: Row) -> list[str]:
  return [
    row['generator'],
    f'{row["generator_parameters"] / 1e6:.1f}M',
    *(
      text
      for preset in ('paper', 'default')
      for text in (
        _both(row[preset], 'fid'),
        _both(row[preset], 'untrained_fid'),
        _kid(row[preset]),
      )
    ),
    ', '.join(f'{row["patches"][d]["common"]:.3f}' for d in DIRECTIONS),
  ]


def _untouched(rows: Rows) -> list[list[str]]:
  """Returns the line of images left as they are; none without rows."""
  for row in rows.values():
    found = [
      text
      for preset in ('paper', 'default')
      for text in (
        _both(row[preset], 'identity_fid'),
        '-',
        _both(row[preset], 'identity_kid'),
      )
    ]
    real = [f'{row["patches"][d]["common_real"]:.3f}' for d in DIRECTIONS]
    return [['untouched images', '-', *found, ', '.join(real)]]
  return []


def _both(found: Row, kind: str) -> str:
  return ', '.join(f'{found[f"{kind}_{d}"]:.3g}' for d in DIRECTIONS)


def _kid(found: Row) -> str:
  return ', '.join(
    f'{found[f"kid_{d}"]:.3f} ± {found[f"kid_stderr_{d}"]:.3f}'
    for d in DIRECTIONS
  )
