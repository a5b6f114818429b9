"""The rows of `budget` in Markdown: what was chosen, and what blocks reach."""

from experiments import documents
from experiments.figure2_classification import budget, tables
from experiments.runner import Row, Rows

NAMES = {
  **tables.NAMES,
  'vit22b_mlp_norm': 'ViT-22B with MLP-norm (Eq. 2)',
  'released': 'the released ViT-22B',
}
_SETTINGS = {
  'patch8': 'Ti (width 192), patch 8',
  'patch8_narrow': 'width 96, patch 8',
  'patch4_narrow': 'width 96, patch 4',
}
_METRICS = ('top1', 'top5', 'auroc', 'auroc_of_batches')


def sections(rows: Rows) -> list[str]:
  """Returns the page's parts, those of stages without a row left out."""
  titles = {
    'setting': 'Which setting reaches more for about as much computing (one '
    'core, CIFAR-10, ViT-22B, validation part):',
    'search': 'Top-1 of the validation part after a quarter of the budget, by '
    'learning rate; the best, in bold, is used from here on:',
    'seeds': f'The whole budget, {budget.EPOCHS} epochs; test part, mean over '
    'seeds, smallest to largest in brackets. The last AUROC is the mean over '
    "test batches of 128 with absent classes counted as 0, the paper's way:",
    'control': 'ViT at the rate of ViT-22B, where each has its own:',
    'strong': f'The recipe `:strong`, {budget.EPOCHS} epochs, one seed:',
  }
  bodies = {
    'setting': [_settings(rows)],
    'search': [_searches(rows)],
    'seeds': _results(rows, 'seeds'),
    'control': _results(rows, 'control'),
    'strong': _results(rows, 'strong'),
  }
  stages = {row['stage'] for row in rows.values()}
  return [
    part
    for stage, title in titles.items()
    if stage in stages
    for part in (title, *bodies[stage])
  ]


def _settings(rows: Rows) -> str:
  chosen = budget.chosen_setting(rows)
  lines = []
  for row in _of(rows, stage='setting'):
    name = _SETTINGS[row['setting']]
    steps, _ = budget.SETTINGS[row['setting']]
    lines.append(
      [
        f'**{name}**' if row['setting'] == chosen else name,
        f'{row["parameters"] / 1e6:.2f}M',
        f'{steps:,}',
        f'{steps * row["batch_size"]:,}',
        f'{row["cpu_seconds"]:.0f}',
        f'{row["val_top1"]:.3f}',
      ]
    )
  columns = ('setting', '#parameters', '#steps', '#images seen')
  return documents.table((*columns, '#core seconds', '#top-1'), lines)


def _searches(rows: Rows) -> str:
  lines = []
  for data in budget.DATA:
    for block in budget.BLOCKS:
      found = budget.searched(rows, data, block)
      best = budget.chosen_rate(rows, data, block)
      if found:
        lines.append(
          [
            data,
            NAMES[block],
            *(_searched(found.get(r), r == best) for r in budget.RATES),
          ]
        )
  rates = (f'#{rate:g}' for rate in budget.RATES)
  return documents.table(('set', 'block', *rates), lines)


def _searched(row: Row | None, is_best: bool) -> str:
  if row is None or row['val_top1'] is None:
    return '-'
  text = f'{row["val_top1"]:.3f}'
  return f'**{text}**' if is_best else text


def _results(rows: Rows, stage: str) -> list[str]:
  lines, differences = [], []
  for data in budget.DATA:
    groups = by_block(rows, data, stage)
    for block, chosen in groups.items():
      lines.append(
        [
          data,
          chosen[0]['images'],
          NAMES[block],
          f'{chosen[0]["parameters"] / 1e6:.2f}M',
          f'{chosen[0]["rate"]:g}',
          len(chosen),
          *(tables.spread(chosen, metric) for metric in (*_METRICS, 'loss')),
        ]
      )
    base = groups.pop('vit', None)
    for block, chosen in groups.items() if base else ():
      less = (tables.difference(chosen, base, m) for m in _METRICS)
      differences.append([data, NAMES[block], *less])
  columns = ('set', 'images', 'block', '#parameters', '#rate', '#seeds')
  metrics = ('#top-1', '#top-5', '#AUROC', '#AUROC of batches')
  found = [documents.table((*columns, *metrics, '#loss'), lines)]
  if differences:
    found += [
      'Each block less ViT, with the 95 % interval of a Welch t-test over '
      'seeds where there are some:',
      documents.table(('set', 'block', *metrics), differences),
    ]
  return found


def by_block(
  rows: Rows, data: str, stage: str = 'seeds'
) -> dict[str, list[Row]]:
  """Returns a stage's runs of a set by block, of those that have any.

  Blocks come in the order of `budget.BLOCKS`.
  """
  found = {
    block: _of(rows, stage=stage, data=data, block=block)
    for block in budget.BLOCKS
  }
  return {block: chosen for block, chosen in found.items() if chosen}


def _of(rows: Rows, **facts: str) -> list[Row]:
  """Lists the rows that have these facts."""
  return [r for r in rows.values() if facts.items() <= r.items()]
