"""Pages open with an answer, and the answers hold in the rows."""

import json
import re
import shutil

import numpy as np
import pytest

from experiments import catalogue, kept, results, runner
from experiments.figure1_stability import cells
from experiments.figure2_classification import budget, budget_tables
from experiments.figure2_classification import tables as figure2
from vit22b_jax.modes import probe

FOLDER = results.ROOT / 'experiments'
ORDER = ('released', 'vit22b', 'vit22b_mlp_norm', 'vit')  # best first
PAGES = [
  *(e.folder / 'README.md' for e in catalogue.EXPERIMENTS),
  *kept.pages(FOLDER),
]


def rows_of(name: str) -> runner.Rows:
  return runner.read(FOLDER / name / 'results.json')


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.parent.name)
def test_a_page_is_title_answer_results_method(path):
  text = path.read_text()
  title, answer, _ = text.split('\n\n', 2)
  assert title.startswith('# ')
  assert answer[0].isupper() and answer.endswith('.')
  shown = min(text.find(mark) % len(text) for mark in ('\n| ', '\n!['))
  assert shown < text.index('\n## Method')


def test_modules_that_pages_name_are_there():
  places = results.ROOT, results.ROOT / 'vit22b_jax'
  for path in FOLDER.glob('*/README.md'):
    for name in re.findall(r'`((?:\w+/)+\w+\.py)`', path.read_text()):
      assert any((place / name).exists() for place in places), (path, name)


def test_figure_1_explodes_within_the_steps_that_the_page_says():
  folder = FOLDER / 'figure1_stability'
  rows = [*rows_of(folder.name).values()]
  rows += runner.read(folder / 'results_real.json').values()
  last = max(row['explosion'] or 0 for row in rows)
  assert f'within {last} steps' in (folder / 'README.md').read_text()
  assert 2 * last <= probe.STEPS


def test_the_norms_that_help_are_those_that_the_page_names():
  rows = rows_of('figure1_stability')
  rates = {
    variant: cells.bounds('S', variant, rows)[1]
    for variant in ('original', 'pre_norm', 'sum_norm', 'mlp_norm')
  }
  assert rates['pre_norm'] > rates['original'] == rates['mlp_norm']
  assert rates['sum_norm'] > rates['original']


def interval(text: str) -> tuple[float, float]:
  low, high = text.partition('[')[2].rstrip(']').split(',')
  return float(low), float(high)


def test_the_blocks_differ_at_the_real_scale_and_not_at_the_cpus():
  for blocks in figure2.groups(rows_of('figure2_classification')).values():
    text = figure2.difference(blocks['vit22b'], blocks['vit'], 'top1')
    low, high = interval(text)
    assert low < 0 < high
  rows = runner.read(FOLDER / 'figure2_classification' / 'results_real.json')
  top1 = {}
  for data, most in (('cifar10', 0.01), ('cifar100', 0.02)):
    groups = budget_tables.by_block(rows, data)
    for metric in ('top1', 'top5', 'auroc', 'auroc_of_batches'):
      low, _ = interval(
        figure2.difference(groups['vit22b'], groups['vit'], metric)
      )
      assert low > 0
    for block, group in groups.items():
      values = figure2.known(group, 'top1')
      assert max(values) - min(values) < most
      top1[data, block] = np.mean(values)
  lead = top1['cifar10', 'vit22b'] - top1['cifar10', 'vit']
  assert 0.02 < lead < 0.035
  assert 0.05 < top1['cifar100', 'vit22b'] - top1['cifar100', 'vit'] < 0.06
  mlp_norm = top1['cifar10', 'vit22b_mlp_norm']
  assert abs(top1['cifar10', 'vit22b'] - mlp_norm) < 0.005
  (control,) = budget_tables.by_block(rows, 'cifar100', 'control')['vit']
  assert abs(control['top1'] - top1['cifar100', 'vit']) < 0.005
  mlp_norm = top1['cifar100', 'vit22b_mlp_norm']
  assert top1['cifar100', 'vit'] < mlp_norm < top1['cifar100', 'vit22b']
  assert 0.06 < top1['cifar10', 'released'] - top1['cifar10', 'vit'] < 0.07
  strong = budget_tables.by_block(rows, 'cifar10', 'strong')
  (vit,), (vit22b,) = strong['vit'], strong['vit22b']
  assert 0.02 < vit22b['top1'] - vit['top1'] < 0.035
  for row in (vit, vit22b):
    assert 0.2 < top1['cifar10', row['block']] - row['top1'] < 0.25


def test_the_order_of_the_blocks_in_the_search_is_that_of_the_page():
  rows = runner.read(FOLDER / 'figure2_classification' / 'results_real.json')
  found = {block: budget.searched(rows, 'cifar10', block) for block in ORDER}
  for block in ORDER:
    assert budget.chosen_rate(rows, 'cifar10', block) == 0.0005
  for rate in budget.RATES:
    values = [found[block][rate]['val_top1'] for block in ORDER]
    assert values == sorted(values, reverse=True)
    assert 0.07 < values[0] - values[1] < 0.09
  found = {block: budget.searched(rows, 'cifar100', block) for block in ORDER}
  for block in ORDER:
    best = 0.0005 if block == 'vit' else 0.001
    assert budget.chosen_rate(rows, 'cifar100', block) == best
  for rate in budget.RATES:
    values = [found[block][rate]['val_top1'] for block in ORDER]
    assert values[0] == max(values) and values[-1] == min(values)


def test_parameters_of_the_blocks_differ_by_less_than_the_page_says():
  counts = {
    (c['setting'], c['block'], c['size']): sum(c['terms'].values())
    for c in rows_of('table1_parameters')['parameters']['counts']
  }
  pairs = {
    'literature': ('vit', 'vit22b'),
    'released': ('released_vit', 'released'),
  }
  found = 0
  for (setting, block, size), number in counts.items():
    if block == pairs[setting][0]:
      ours = counts[setting, pairs[setting][1], size]
      assert 0.997 * number < ours < number
      found += 1
  assert found == 12


def test_vit22b_comes_last_by_the_papers_preset_on_all_sets():
  real = runner.read(FOLDER / 'table2_translation' / 'results_real.json')
  rows = [*rows_of('table2_translation').values(), *real.values()]
  for data in {row['data'] for row in rows}:
    for direction in ('a2b', 'b2a'):
      distances = {
        row['generator']: row['paper'][f'fid_{direction}']
        for row in rows
        if row['data'] == data
      }
      assert max(distances, key=distances.get) == 'ViT-22B-S'


def test_vit22b_ends_better_than_it_began_on_photographs_of_fruit_alone():
  real = runner.read(FOLDER / 'table2_translation' / 'results_real.json')
  for row in (*rows_of('table2_translation').values(), *real.values()):
    if row['generator'] == 'ViT-22B-S' and row['data'] != 'fruit':
      apples = row['data'] == 'cycle_gan/apple2orange'
      for way in ('a2b', 'b2a'):
        ends = row['paper'][f'fid_{way}']
        assert (ends < row['paper'][f'untrained_fid_{way}']) == apples
        texture = row['patches'][way]
        assert texture['common'] > 15 * texture['common_real']


def test_space_alone_beats_untouched_photographs():
  path = FOLDER / 'table2_translation' / 'results_real.json'
  rows = {row['generator']: row for row in runner.read(path).values()}
  ratio = {
    (name, preset): row[preset]['fid'] / row[preset]['identity_fid']
    for name, row in rows.items()
    for preset in ('paper', 'default')
  }
  assert ratio['ViT-S space', 'paper'] < 0.5
  assert 1.25 < ratio['ViT-S space', 'default'] < 1.45
  for name in ('ResNet', 'ViT-S', 'ViT-B'):
    assert 2 < ratio[name, 'paper'] < 5


def kids_overlap(row: runner.Row, other: runner.Row) -> bool:
  return all(
    abs(row[preset][f'kid_{way}'] - other[preset][f'kid_{way}'])
    <= sum(side[preset][f'kid_stderr_{way}'] for side in (row, other))
    for preset in ('paper', 'default')
    for way in ('a2b', 'b2a')
  )


def test_the_residual_does_most_for_the_spatial_vitunet():
  rows = rows_of('spatial_parts')
  fid = {name: row['paper']['fid'] for name, row in rows.items()}
  seeds = fid['space'], fid['space_seed_1']
  assert [round(value, 2) for value in seeds] == [0.75, 0.95]
  for name in ('cut_patches', 'instance_norm'):
    assert min(seeds) < fid[name] < max(seeds)
  assert max(seeds) < fid['no_fine_maps'] < fid['no_residual']
  untrained = {n: row['paper']['untrained_fid'] for n, row in rows.items()}
  before = [round(untrained[name], 1) for name in ('space', 'space_seed_1')]
  assert before == [1.2, 2.2]
  assert round(untrained['no_residual']) == 29
  assert round(fid['no_residual'], 2) == 1.65
  for row in rows.values():
    untouched = row['paper']['identity_fid'], row['default']['identity_fid']
    assert round(untouched[0], 2) == 1.12
    assert row['default']['fid'] > untouched[1]
  assert [round(fid['resnet'] / seed) for seed in seeds] == [6, 5]
  assert fid['resnet'] / fid['no_residual'] > 2.5
  for measure in ('fid', 'kid'):
    ahead, behind = (
      rows['no_residual'][preset][measure] - rows['resnet'][preset][measure]
      for preset in ('paper', 'default')
    )
    assert ahead < 0 < behind
  apples = {name: row['default']['fid_b2a'] for name, row in rows.items()}
  least = rows['no_fine_maps']['default']['untrained_fid_b2a']
  assert apples['no_fine_maps'] > least
  for seed in ('space', 'space_seed_1'):
    assert apples['no_fine_maps'] > 3 * apples[seed]
  apart = {name for name in rows if not kids_overlap(rows[name], rows['space'])}
  assert apart == {'no_residual', 'resnet', 'no_fine_maps'}
  for name, row in rows.items():
    for texture in row['patches'].values():
      draws = name.startswith(('pixel_shuffle', 'resnet'))
      assert (texture['common'] > 0.005) == draws
  for seed in ('', '_seed_1'):
    shuffled = rows[f'pixel_shuffle{seed}']
    assert 0.7 < shuffled['paper']['fid'] / fid[f'space{seed}'] < 0.9
  path = FOLDER / 'spatial_parts' / 'speed.json'
  for measured in json.loads(path.read_text()).values():
    assert all(row['ratio'] > 4 for row in measured['rows'])


def test_a_step_beside_pytorchs_is_what_the_page_says():
  bounds = {'Zen 5': (1.3, 2), 'Zen 3': (0.98, 1.2), 'Xeon': (0.84, 1)}
  processors = set()
  for file in ('results', 'translation'):
    found = json.loads((FOLDER / 'throughput' / f'{file}.json').read_text())
    for name, measured in found.items():
      processors.add(name)
      for row in measured['rows']:
        if not row['peer'].startswith(('our ', 'plain ')):
          ((low, high),) = [b for key, b in bounds.items() if key in name]
          assert low < row['ratio'] < high
  assert len(processors) == 3


def test_what_a_run_that_was_begun_would_cost(tmp_path):
  run = shutil.copytree(FOLDER / 'cifar100_s', tmp_path / 'run')
  rows = [
    {'step': 100, 'epoch': 100 / 351, 'train/loss': 4.5},
    {'step': 200, 'epoch': 200 / 351, 'train/loss': 4.25},
  ]
  lines = [json.dumps(row | {'perf/images_per_second': 16.0}) for row in rows]
  (run / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  plan = {
    'chip': 'h100',
    'config': {'model': {'dtype': 'bfloat16'}},
    'predicted_step_seconds': 0.5,
  }
  (run / 'plan.json').write_text(json.dumps(plan))
  text = kept.cost([run])  # 70,200 steps of 8 s, and of half a second
  assert 'the first 200 of 70,200 steps took 27 minutes' in text
  assert '16 images a second' in text and 'all would take 6.5 days' in text
  assert 'one h100, in bfloat16, says 9 h 45 min at best' in text
  assert '4.50 (mean of the first 100 steps) to 4.25.' in text
