"""Writes Figure 1's rows in Markdown, and in words."""

from typing import Any

from experiments import documents
from experiments.figure1_stability import cells, measure
from experiments.runner import Row, Rows

_NAMES = {
  'original': 'none (`released_unnormed`)',
  'pre_norm': 'pre-norm',
  'mlp_norm': 'MLP-norm',
  'sum_norm': 'sum-norm (`released`)',
  'pre_norm+mlp_norm': 'pre-norm and MLP-norm (Eq. 2)',
  'final_norm': 'final norm',
  'no_qk_norm': 'without QK-norm',
  'pre_norm+no_qk_norm': 'pre-norm, without QK-norm',
  'clip': 'clipping at 10',
  'warmup': 'warm-up of 50 steps',
  'init_vit': "`init='vit'`",
}


def name_of(variant: str) -> str:
  """Returns a variant's name in tables and legends."""
  return _NAMES.get(variant, variant.replace('_', ' '))


def sections(rows: Rows, size: str) -> list[str]:
  """Returns the page's parts, without stages that have no row."""
  stages = {row['stage'] for row in rows.values()}
  stored = ' and '.join(sorted({row['images'] for row in rows.values()}))
  parts = []
  if 'bisect' in stages:
    parts += [
      f'Size {size}, {stored} images: the highest rate without and the lowest '
      'with an explosion '
      f'(a logit or gradient entry of {cells.CAP:,.0f}, or a value that is not '
      f'finite) within {cells.STEPS} steps, rates doubling; and, in the runs '
      'that exploded, where a signal of a block first was ten times what it '
      'was at the first step, beside how many runs at the stable rate come to '
      'that as well.',
      rates(rows, size),
    ]
  titles = {
    'large': "The code's default rate at size B, with nothing stopped:",
    'long': 'Runs for late explosions:',
  }
  for stage, title in titles.items():
    if stage in stages:
      parts += [title, watched(rows, stage)]
  return parts


def lossless(rows: Rows, jpeg: Rows) -> list[str]:
  """Returns the page's parts on lossless images, beside rows on JPEG."""
  large = {name: row for name, row in jpeg.items() if row['stage'] == 'large'}
  titles = {
    'repeat': 'Size S, within 150 steps, those seeds that have run, on the '
    'lossless set and on the JPEG one, whose records come in another order, so '
    'that a seed sees other batches: runs that exploded, when, and the mean '
    'loss of the last 50 steps of those that did not.',
    'large': "The code's default rate at size B, with nothing stopped:",
    'recovery': 'Runs that went on at a rate that explodes, beside a pre-norm, '
    f'which does not explode there, for {cells.RECOVERY:,} steps; top-1 of the '
    'validation part on the way, and of the test part at the end:',
  }
  bodies = {
    'repeat': _repeats(rows, jpeg),
    'large': watched({**large, **rows}, 'large'),
    'recovery': _recoveries(rows),
  }
  stages = {row['stage'] for row in rows.values()}
  return [
    part
    for stage, title in titles.items()
    if stage in stages
    for part in (title, bodies[stage])
  ]


def _repeats(rows: Rows, jpeg: Rows) -> str:
  lines = []
  for variant, exploded in cells.EXPLODED.items():
    for exponent in (exploded, exploded - 1):
      here, before = (
        [
          row
          for row in some.values()
          if (row['size'], row['variant']) == ('S', variant)
          and row.get('exponent') == exponent
        ]
        for some in (rows, jpeg)
      )
      if here:
        pairs = zip(_outcome(here), _outcome(before), strict=True)
        columns = [cell for pair in pairs for cell in pair]
        lines.append([name_of(variant), _rate(exponent), *columns])
  columns = ('#exploded', '#at step', '#loss of stable runs')
  pairs = [name for c in columns for name in (f'{c}, lossless', f'{c}, JPEG')]
  return documents.table(('change to the block', '#rate', *pairs), lines)


def _outcome(rows: list[Row]) -> list[str]:
  stable = [row['last_loss'] for row in rows if row['explosion'] is None]
  steps = [r['explosion'] for r in rows if r['explosion'] is not None]
  return [_share(rows), _span(steps), _span(stable, 2)]


def _recoveries(rows: Rows) -> str:
  chosen = [r for r in rows.values() if r['stage'] == 'recovery']
  steps = sorted({step for row in chosen for step in row['val_top1'][0]})
  lines = []
  for row in chosen:
    known = dict(zip(*row['val_top1'], strict=True))
    lines.append(
      [
        row['size'],
        name_of(row['variant']),
        f'{row["rate"]:g}',
        row['seed'],
        row['explosion'] or 'never',
        row['steps_beyond'],
        _peak(row, 'max_logit'),
        _loss(row['last_loss']),
        *(_part(known.get(step)) for step in steps),
        _part(row['top1']),
      ]
    )
  return documents.table(
    (
      'size',
      'change to the block',
      '#rate',
      '#seed',
      '#explodes at step',
      f'#steps beyond {cells.CAP:,.0f}',
      '#largest logit (step)',
      '#last loss',
      *(f'#top-1 at {step:,}' for step in steps),
      '#test',
    ),
    lines,
  )


def _part(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


def rates(rows: Rows, size: str) -> str:
  """Returns the lowest exploding rate of each variant, and its origin.

  Args:
    rows: of all stages.
    size: of the model.
  """
  lines = [
    line
    for variant in cells.VARIANTS
    for line in [_rate_line(rows, size, variant)]
    if line
  ]
  return documents.table(
    (
      'change to the block',
      '#highest stable rate',
      '#lowest exploding rate',
      "#times the unchanged block's",
      '#seeds that explode there',
      '#seeds that explode at half of it',
      '#explodes at step',
      'attention logits first grew tenfold',
      'residual RMS first grew tenfold',
      'gradient norm first grew tenfold',
      'stable runs with tenfold logits; RMS; gradients',
      '#loss of stable runs',
    ),
    lines,
  )


def _rate_line(rows: Rows, size: str, variant: str) -> list[str] | None:
  chosen = [r for r in rows.values() if r['size'] == size]
  chosen = [r for r in chosen if r['variant'] == variant and 'exponent' in r]
  low, high = cells.bounds(size, variant, rows)
  if not chosen or high - low > 1:
    return None
  at_low = [r for r in chosen if r['exponent'] == low]
  at_high = [r for r in chosen if r['exponent'] == high]
  exploded = [r for r in at_high if r['explosion'] is not None]
  stable = [r for r in at_low if r['explosion'] is None]
  return [
    name_of(variant),
    _rate(low) if at_low else f'below {_rate(low + 1)}',
    _rate(high) if at_high else f'above {_rate(high - 1)}',
    _times(high, cells.bounds(size, 'original', rows)) if at_high else '-',
    _share(at_high),
    _share(at_low),
    _span([r['explosion'] for r in exploded]),
    *(_origins(exploded, signal) for signal in measure.SIGNALS),
    _reached(stable),
    _span([r['last_loss'] for r in stable], 2),
  ]


def _reached(stable: list[Row]) -> str:
  """Returns how many runs reach ten times their start without an explosion."""
  counts = [
    sum(row['origin'][signal] is not None for row in stable)
    for signal in measure.SIGNALS
  ]
  return '; '.join(f'{n} of {len(stable)}' for n in counts) if stable else '-'


def watched(rows: Rows, stage: str) -> str:
  """Returns early and late peaks of runs that went on after explosions."""
  chosen = [r for r in rows.values() if r['stage'] == stage]
  lines = [
    [
      row['images'],
      row['size'],
      name_of(row['variant']),
      f'{row["rate"]:g}',
      row['seed'],
      f'{row["steps"]:,}',
      *(_peak(row, column) for column in ('max_logit', 'max_abs_grad')),
      *(_late(row, column) for column in ('max_logit', 'max_abs_grad')),
      row['steps_beyond'] - row['steps_beyond_late'],
      row['steps_beyond_late'],
      _loss(row['last_loss']),
    ]
    for row in chosen
  ]
  return documents.table(
    (
      'images',
      'size',
      'change to the block',
      '#rate',
      '#seed',
      '#steps',
      '#largest logit (step)',
      '#largest gradient (step)',
      f'#largest logit after step {cells.START_UP}',
      f'#largest gradient after step {cells.START_UP}',
      f'#steps beyond {cells.CAP:,.0f} up to step {cells.START_UP}',
      '#steps beyond it after that',
      '#last loss',
    ),
    lines,
  )


def _rate(exponent: int) -> str:
  return f'{cells.RATE * 2.0**exponent:.3g}'


def _times(high: int, original: tuple[int, int]) -> str:
  """Returns an exploding rate over that of the unchanged block."""
  low, base = original
  return f'{2.0 ** (high - base):g}' if base - low == 1 else '-'


def _share(rows: list[Row]) -> str:
  exploded = sum(row['explosion'] is not None for row in rows)
  return f'{exploded} of {len(rows)}' if rows else '-'


def _span(values: list[Any], digits: int = 0) -> str:
  """Returns the smallest and the largest as text."""
  if not values:
    return '-'
  low, high = (f'{f(values):.{digits}f}' for f in (min, max))
  return low if low == high else f'{low} to {high}'


def _origins(rows: list[Row], signal: str) -> str:
  """Returns where a signal first was ten times its start in explosions."""
  found = [r['origin'][signal] for r in rows if r['origin'][signal]]
  if not found:
    return 'never' if rows else '-'
  layers = _span([f['layer'] for f in found])
  some = '' if len(found) == len(rows) else f', {len(found)} of {len(rows)}'
  return f'block {layers}, step {_span([f["step"] for f in found])}{some}'


def _peak(row: Row, column: str) -> str:
  value, step = row['peak'][column]
  return f'{value:,.4g} ({step:,})'


def _loss(value: float | None) -> str:
  if value is None:
    return '-'
  return f'{value:.2f}' if value < 1000 else f'{value:.3g}'


def _late(row: Row, column: str) -> str:
  late = row['peak_late'][column]
  return f'{late[0]:,.3g}' if late else '-'
