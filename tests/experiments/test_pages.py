"""Pages open with an answer, and the answers hold in the rows."""

import pytest

from experiments import catalogue, kept, results, runner
from experiments.figure1_stability import cells
from experiments.figure2_classification import tables as figure2

FOLDER = results.ROOT / 'experiments'
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


def test_the_norms_that_help_are_those_that_the_page_names():
  rows = rows_of('figure1_stability')
  rates = {
    variant: cells.bounds('S', variant, rows)[1]
    for variant in ('original', 'pre_norm', 'sum_norm', 'mlp_norm')
  }
  assert rates['pre_norm'] > rates['original'] == rates['mlp_norm']
  assert rates['sum_norm'] > rates['original']


def test_no_difference_of_blocks_in_top1_is_settled():
  for blocks in figure2.groups(rows_of('figure2_classification')).values():
    text = figure2.difference(blocks['vit22b'], blocks['vit'], 'top1')
    low, high = map(float, text.partition('[')[2].rstrip(']').split(','))
    assert low < 0 < high


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


def test_vit22b_comes_last_by_the_papers_preset_on_both_sets():
  rows = rows_of('table2_translation').values()
  for data in {row['data'] for row in rows}:
    distances = {
      row['generator']: row['paper']['fid']
      for row in rows
      if row['data'] == data
    }
    assert max(distances, key=distances.get) == 'ViT-22B-S'
