"""report.compare: groups of seeds, how far apart, one page of many runs."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from absl import flags
from scipy import stats

from configs import fid
from tests.helpers import chromium, report_fixtures
from vit22b_jax import cli, errors, report
from vit22b_jax import config as config_lib
from vit22b_jax.report import (
  charts,
  comparison,
  groups,
  intervals,
  results,
  task_pages,
)
from vit22b_jax.runtime import runs

_SCORES = {
  'split': 'test',
  'num_examples': 400,
  'step': 40,
  'weights': 'params',
}


def make(
  path: pathlib.Path,
  top1: float | None = None,
  *,
  seed: int = 0,
  steps: int = 40,
  every: int = 10,
  **choices,
) -> pathlib.Path:
  """A small workdir of a classifier; `choices` are sections of its config.

  Its validation accuracy is seed / 10 + step / 1,000.
  """
  path.mkdir(parents=True)
  config = report_fixtures.CONFIG | {'seed': seed}
  for section, values in choices.items():
    config[section] = config[section] | values
  (path / 'config.json').write_text(json.dumps(config))
  (path / 'versions.json').write_text(json.dumps(report_fixtures.VERSIONS))
  rows = [
    {'step': s, 'epoch': s / 20, 'val/top1': seed / 10 + s / 1_000}
    for s in range(every, steps + 1, every)
  ]
  report_fixtures.write_lines(path / 'metrics.jsonl', rows)
  table = [f'{s},2.5,{3 + seed},0.5' for s in range(1, steps + 1)]
  lines = ['step,loss,max_logit,max_abs_grad', *table, '']
  (path / 'diagnostics.csv').write_text('\n'.join(lines))
  if top1 is not None:
    scores = _SCORES | {'top1': top1, 'top5': 1.0, 'auroc': 0.9, 'loss': 1.5}
    (path / 'eval.json').write_text(json.dumps(scores))
  return path


@pytest.fixture
def seeds(tmp_path):
  """Two groups of three seeds, the second five points better."""
  return [
    make(
      tmp_path / f'{block}_seed{seed}', score, seed=seed, model={'block': block}
    )
    for block, scores in (
      ('vit', (0.80, 0.82, 0.81)),
      ('vit22b', (0.85, 0.86, 0.87)),
    )
    for seed, score in enumerate(scores)
  ]


def groups_of(*paths):
  return groups.from_runs([runs.read(path) for path in paths])


def curves_of(*paths):
  several = [runs.read(path) for path in paths]
  wanted = comparison.wanted_curves(several)
  return charts.group_curves(groups.from_runs(several), wanted)


def page_of(paths, folder):
  return report.compare(paths, folder / 'comparison.html').read_text()


def seen(html):
  """Returns what a reader sees, without pictures and scripts."""
  text = re.sub(r'<(script|style).*?</\1>|<wbr>', '', html, flags=re.DOTALL)
  return ' '.join(re.sub(r'<[^>]*>', ' ', text).split())  # \u00a0 too


# --- Groups ----------------------------------------------------------------


def test_seeds_and_paths_do_not_split_a_group(tmp_path):
  found = groups_of(
    make(tmp_path / 'a_seed0', data={'dir': '/here'}),
    make(tmp_path / 'a_seed1', seed=1, data={'dir': '/there'}),
    make(tmp_path / 'b', optim={'learning_rate': 1e-3}),
  )
  assert [(g.name, len(g.members)) for g in found] == [('a', 2), ('b', 1)]


def test_a_key_that_came_later_splits_no_group(tmp_path):
  one, two = make(tmp_path / 'a'), make(tmp_path / 'b')
  config = json.loads((one / 'config.json').read_text())
  del config['model']['norm'], config['eval']['test']  # as old runs are
  (one / 'config.json').write_text(json.dumps(config))
  assert len(groups_of(one, two)) == 1
  three = make(tmp_path / 'c', model={'norm': 'rms'})
  assert len(groups_of(one, two, three)) == 2


def test_names_take_parent_folders_only_where_they_repeat(tmp_path):
  paths = [make(tmp_path / p, data={'name': p}) for p in ('x/a', 'y/a', 'y/b')]
  members = groups.name_runs([runs.read(path) for path in paths])
  assert [m.name for m in members] == ['x/a', 'y/a', 'b']
  assert [m.anchor for m in members] == ['run-x-a', 'run-y-a', 'run-b']


def test_anchors_stay_apart_where_signs_fall_away(tmp_path):
  paths = [make(tmp_path / name) for name in ('a b', 'a+b', 'a-b')]
  html = page_of(paths, tmp_path)
  anchors = re.findall(r'<article id="([^"]*)"', html)
  assert anchors == ['run-a-b', 'run-a-b-2', 'run-a-b-3']
  assert {f'#{a}' for a in anchors} <= set(re.findall(r'href="([^"]*)"', html))
  ids = re.findall(r' id="([^"]*)"', html)
  assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
  'shared, names',
  [
    ('cifar_s', ('cifar_s', 'cifar_s_seed1')),
    ('cifar_s', ('cifar_s_0', 'cifar_s_1')),
    ('lr_1e-3', ('lr_1e-3', 'lr_1e-3_s1')),
    ('wd_0.1', ('wd_0.1_seed0', 'wd_0.1_seed01')),
    ('depth_6', ('depth_6_first', 'depth_6_second')),
    ('a_run', ('a_run4', 'a_run5')),
    ('lr_0.0', ('lr_0.0', 'lr_0.0_1')),
  ],
)
def test_a_group_is_named_without_its_seeds_alone(shared, names, tmp_path):
  paths = [make(tmp_path / n, seed=seed) for seed, n in enumerate(names)]
  assert [group.name for group in groups_of(*paths)] == [shared]


def test_a_group_of_bare_seeds_has_its_folders_name(tmp_path):
  paths = [make(tmp_path / f'digits/seed_{s}', seed=s) for s in (0, 1, 10)]
  assert groups_of(*paths)[0].name == 'digits'


def test_differences_name_presets(tmp_path):
  found = groups_of(
    make(tmp_path / 'a'),
    make(tmp_path / 'b', model={'depth': 6, 'width': 8}, data={'dir': '/x'}),
  )
  assert groups.differences(found) == {
    'model.depth': ['preset', '6'],
    'model.width': ['preset', '8'],
  }
  assert groups.other_differences([g.members[0].run for g in found]) == [
    'data.dir'
  ]


# --- Intervals -------------------------------------------------------------


def test_student():
  low, high = intervals.student([1.0, 2.0, 3.0])
  half = 4.302653 / np.sqrt(3)  # t of 2 degrees of freedom
  assert (low, high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
  expected = stats.ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval()
  assert (low, high) == pytest.approx(expected)
  for without in ([1.0], [2.0, 2.0], [1.0, np.nan], [1.0, np.inf], []):
    assert intervals.student(without) is None


def test_welch():
  base, other = [0.80, 0.82, 0.81], [0.85, 0.88]
  change, found = intervals.welch(base, other)
  assert change == pytest.approx(0.055)
  expected = stats.ttest_ind(other, base, equal_var=False).confidence_interval()
  assert tuple(found) == pytest.approx(tuple(expected))
  assert intervals.welch([1.0], other)[1] is None
  assert intervals.welch([1.0, 1.0], [2.0, 2.0]) == (1.0, None)
  assert intervals.welch([1.0, np.nan], other)[1] is None


def test_wilson():
  expected = stats.binomtest(324, 400).proportion_ci(method='wilson')
  assert tuple(intervals.wilson(0.81, 400)) == pytest.approx(tuple(expected))
  for part, count in ((float('nan'), 400), (0.5, 0)):
    assert intervals.wilson(part, count) is None
  assert intervals.wilson(1.0, 400)[1] == pytest.approx(1.0)
  assert intervals.wilson(0.0, 400)[0] == pytest.approx(0.0)


def test_differences_are_said_in_words(seeds):
  base, other = groups_of(*seeds)
  top1, top5, *_ = results.measures([m.run for m in base.members])
  cell = results.difference(top1, base, other)
  expected = stats.ttest_ind(
    [85, 86, 87], [80, 82, 81], equal_var=False
  ).confidence_interval()
  assert cell.text == '+5.00'
  assert cell.note.replace('\u00a0', ' ') == (
    f'[{expected.low:.2f}, {expected.high:.2f}] excludes 0: better'
  )
  assert results.difference(top1, other, base).text == '−5.00'
  assert results.difference(top1, other, base).mood == 'bad'
  assert (
    results.difference(top5, base, other).note == 'no interval: seeds agree'
  )


def test_one_seed_has_an_interval_of_the_test_set_alone(tmp_path):
  (group,) = groups_of(make(tmp_path / 'a', 0.81))
  (top1, *_) = results.measures([group.members[0].run])
  cell = results.row(group, [top1], top1)[1]
  low, high = intervals.wilson(0.81, 400)
  assert cell.text == '81.00'
  note = f'test set: {100 * low:.2f} to {100 * high:.2f}'
  assert cell.note.replace('\u00a0', ' ') == note


def test_a_seed_that_ran_twice_counts_once(tmp_path):
  paths = [make(tmp_path / n, 0.8, seed=s) for n, s in (('a', 0), ('b', 0))]
  paths.append(make(tmp_path / 'c', 0.9, seed=1))
  (group,) = groups_of(*paths)
  (top1, *_) = results.measures([m.run for m in group.members])
  assert results.values(top1, group) == pytest.approx([80, 90])
  (first, *_) = results.row(group, [top1], top1)
  assert first.note == 'seed 0 repeated'


def test_a_column_of_validations_holds_one_measure(tmp_path):
  for name, kind in (('a', 'softmax'), ('b', 'sigmoid')):
    make(tmp_path / name, 0.8, loss={'kind': kind})
  path = tmp_path / 'b' / 'metrics.jsonl'
  path.write_text(path.read_text().replace('val/top1', 'val/map'))
  found = groups_of(tmp_path / 'a', tmp_path / 'b')
  validated = results.validated_by([g.members[0].run for g in found])
  at = results.columns([], validated).index(validated.label)
  cells = [results.row(g, [], validated)[at] for g in found]
  assert validated.key == 'val/top1'
  assert cells[0] != results.NOTHING == cells[1]


def test_other_protocols_give_no_difference(tmp_path):
  paths = [make(tmp_path / n, 0.8, data={'name': n}) for n in ('c10', 'c100')]
  text = seen(page_of(paths, tmp_path))
  assert 'Not all was measured alike.' in text
  assert 'c10: test part of c10, 400 images' in text
  assert 'Not comparable' in text
  assert 'measured otherwise' in text


# --- Curves ----------------------------------------------------------------


def test_a_band_is_drawn_at_shared_steps_alone():
  found = groups.band(
    [
      (np.array([10, 20, 30, 40]), np.array([1.0, np.nan, 3, 4])),
      (np.array([10, 20, 30]), np.array([3.0, 2, 5])),
    ]
  )
  np.testing.assert_array_equal(found.steps, [10, 30])
  np.testing.assert_array_equal(found.mean, [2, 4])
  np.testing.assert_array_equal(found.low, [1, 3])
  np.testing.assert_array_equal(found.high, [3, 5])


def test_a_longer_run_goes_on_alone(tmp_path):
  paths = [
    make(tmp_path / 'a', seed=0, steps=40),
    make(tmp_path / 'b', seed=1, steps=20),
  ]
  figure = curves_of(*paths)['Accuracy: validation']
  band, mean, rest = figure['data']
  assert band['x'] == [10, 20, 20, 10]
  assert band['y'] == [0.11, 0.12, 0.02, 0.01]
  assert mean['y'] == [0.06, 0.07]
  assert (rest['name'], rest['x']) == ('a', [20, 30, 40])
  assert rest['line']['dash'] == 'dot'


def test_a_run_that_broke_early_leaves_the_others_their_band(tmp_path):
  paths = [make(tmp_path / name, seed=n) for n, name in enumerate('abc')]
  rows = [{'step': 10, 'val/top1': 0.5}, {'step': 20, 'val/top1': 'nan'}]
  report_fixtures.write_lines(paths[2] / 'metrics.jsonl', rows)
  figure = curves_of(*paths)['Accuracy: validation']
  band, mean, broken, crosses = figure['data']
  assert band['x'][:4] == mean['x'] == [10, 20, 30, 40]
  assert mean['y'] == pytest.approx([0.06, 0.07, 0.08, 0.09])
  assert (broken['name'], broken['line']['dash']) == ('c', 'dot')
  assert crosses['x'] == [20]


def test_runs_without_a_shared_step_are_drawn_as_they_are(tmp_path):
  paths = [
    make(tmp_path / 'a', seed=0, every=10),
    make(tmp_path / 'b', seed=1, every=15),
  ]
  figure = curves_of(*paths)['Accuracy: validation']
  assert [line['x'] for line in figure['data']] == [[10, 20, 30, 40], [15, 30]]


def test_epochs_align_runs_whose_epochs_differ(tmp_path):
  paths = [make(tmp_path / n, data={'name': n}) for n in ('a', 'b')]
  rows = [{'step': s, 'epoch': s / 40, 'val/top1': 0.5} for s in (20, 40)]
  assert not charts.by_epoch([runs.read(path) for path in paths])
  report_fixtures.write_lines(paths[1] / 'metrics.jsonl', rows)
  figure = curves_of(*paths)['Accuracy: validation']
  assert figure['layout']['xaxis']['title']['text'] == 'epoch'
  assert [line['x'] for line in figure['data']] == [
    [0.5, 1.0, 1.5, 2.0],
    [0.5, 1.0],
  ]


def test_values_that_are_not_finite_and_explosions_are_marked(tmp_path):
  paths = [make(tmp_path / n, data={'name': n}) for n in ('a', 'b')]
  (paths[1] / 'diagnostics.csv').write_text(
    'step,loss,max_logit,max_abs_grad\n1,2,3,1\n2,2,9000,1\n3,nan,nan,nan\n'
  )
  event = report_fixtures.events(0)[1] | {'step': 2}
  report_fixtures.write_lines(paths[1] / 'events.jsonl', [event])
  figure = charts.group_stability(groups_of(*paths), 'Largest logit')
  lines = {line['name']: line for line in figure['Largest logit']['data']}
  assert lines['b']['y'] == [3.0, 4_000.0, None]
  assert lines['b']['customdata'] == ['3', '9,000', 'nan']
  assert lines['b: not finite']['x'] == [3]
  mark = lines['b: explosion']
  assert (mark['x'], mark['marker']['color']) == ([2], '$group1')
  assert 'cap 4,000' in lines
  assert '1 explosion' in seen(page_of(paths, tmp_path))


def test_what_shoots_up_is_cut_off(tmp_path):
  paths = [make(tmp_path / n, data={'name': n}) for n in 'abc']
  rows = [{'step': s, 'train/loss': 1e9} for s in (1, 2)]
  report_fixtures.write_lines(paths[2] / 'metrics.jsonl', rows)
  for path in paths[:2]:
    rows = [{'step': s, 'train/loss': 1.0 + s} for s in (0, 1)]
    report_fixtures.write_lines(path / 'metrics.jsonl', rows)
  layout = curves_of(*paths)['Loss: training']['layout']
  assert layout['yaxis']['range'] == pytest.approx([0.95, 2.05])
  assert layout['annotations'][0]['text'] == 'cut off: up to 1e+09'


# --- The page --------------------------------------------------------------


def test_whole_page(seeds, tmp_path):
  html = page_of(seeds, tmp_path)
  text = seen(html)
  for said in (
    'vit and vit22b',
    '6 runs in 2 groups',
    'Which does best? vit22b top-1, %: 86.00; +5.00 against vit',
    'Measured on the test part of cifar10, 400 images.',
    '81.00 ± 2.48',
    'group model.block vit vit vit22b vit22b',
    'No report.html of its own.',
  ):
    assert said in text, said
  assert "default-src 'none'" in html
  assert not re.search(r'src=["\']?(?!data:)\w|@import|url\(|fetch\(', html)
  assert not re.search(r'href="(?!#)', html)


def test_links_to_the_runs_own_reports(seeds, tmp_path):
  (seeds[0] / 'report.html').write_text('')
  html = page_of(seeds, tmp_path / 'a page')
  assert 'href="../vit_seed0/report.html"' in html


def test_bare_workdirs_say_what_is_missing(tmp_path):
  paths = [tmp_path / 'a', tmp_path / 'b']
  for path in paths:
    path.mkdir()
    (path / 'config.json').write_text(json.dumps(report_fixtures.CONFIG))
  text = seen(page_of(paths, tmp_path))
  for said in (
    'No run has a final evaluation yet.',
    'No row of metrics yet.',
    'No diagnostics recorded.',
    'All configs say the same',
    'Missing: metrics.jsonl, diagnostics.csv, eval.json, versions.json.',
  ):
    assert said in text, said


def test_what_was_not_recorded_did_not_stay_calm(tmp_path):
  paths = [make(tmp_path / n, data={'name': n}) for n in ('a', 'b')]
  for path in paths:
    (path / 'diagnostics.csv').unlink()
  text = seen(page_of(paths, tmp_path))
  assert 'Did anything explode? Unknown 2 without diagnostics' in text
  event = report_fixtures.events(0)[1] | {'step': 2, 'kind': 'non_finite'}
  report_fixtures.write_lines(paths[1] / 'events.jsonl', [event])
  (group,) = groups_of(paths[1])
  validated = results.validated_by([group.members[0].run])
  cells = results.row(group, [], validated)
  events = cells[results.columns([], validated).index('events')]
  assert (events.text, events.mood) == ('1 not finite', 'bad')


def test_numbers_that_are_not_finite(tmp_path):
  paths = [make(tmp_path / f'a{s}', 0.8, seed=s) for s in (0, 1)]
  paths.append(make(tmp_path / 'b', 0.1, model={'block': 'vit'}))
  scores = json.loads((paths[0] / 'eval.json').read_text())
  (paths[0] / 'eval.json').write_text(json.dumps(scores | {'loss': 'nan'}))
  assert 'data-value="nan">nan</td>' in page_of(paths, tmp_path)


def test_translations_say_what_their_distances_were_measured_with(tmp_path):
  paths = [
    report_fixtures.make_translation(
      tmp_path / name, steps=400, pixels=16, images=2, weights=weights
    )
    for name, weights in (('a', 'random:0'), ('b', 'random:1'))
  ]
  text = seen(page_of(paths, tmp_path))
  assert 'fruit at 64 px, 64 + 60 images, tap 2048, resize clean' in text
  assert 'measured otherwise' in text
  assert 'FID: apple → orange' in text
  shown = comparison.show_samples(groups_of(*paths)[0].members)
  assert list(shown['directions']) == ['apple → orange', 'orange → apple']
  assert [s['step'] for s in shown['directions']['apple → orange']] == [400]


def test_translations_measured_alike_have_a_best_and_differences(tmp_path):
  paths = [
    report_fixtures.make_translation(
      tmp_path / name, steps=200, pixels=16, images=2, names=names
    )
    for name, names in (('a', ('apple', 'orange')), ('b', ('apple', 'pear')))
  ]
  config = json.loads((paths[1] / 'config.json').read_text())
  config['batch_size'] = 2
  (paths[1] / 'config.json').write_text(json.dumps(config))
  text = seen(page_of(paths, tmp_path))
  assert (
    'mean FID of both directions: 36.35; +0 against b, no interval: one seed'
    in text
  )
  assert 'FID: a2b' in text


def test_a_run_without_distances_hides_no_others(tmp_path):
  paths = [
    report_fixtures.make_translation(
      tmp_path / name, steps=200, pixels=16, images=2, weights=''
    )
    for name in 'abc'
  ]
  for size, path in enumerate(paths, 1):
    config = json.loads((path / 'config.json').read_text())
    config['batch_size'] = size
    (path / 'config.json').write_text(json.dumps(config))
  scores = json.loads((paths[2] / 'eval.json').read_text())
  kept = {key: scores[key] for key in ('split', 'step', 'weights')}
  kept |= {'num_a': 64, 'num_b': 60, 'not_computed': 'no weights'}
  (paths[2] / 'eval.json').write_text(json.dumps(kept))
  for several, baseline in ((paths, 0), (paths[::-1], 1)):
    page = page_of(several, tmp_path)
    assert f'<option value="{baseline}" selected>' in page
    text = seen(page)
    assert 'mean FID of both directions: 36.35; +0 against' in text
    assert 'FID: apple → orange' in text and 'not measured' in text
    assert 'Not all was measured alike' not in text


def test_each_task_has_its_part(tmp_path):
  fruit = report_fixtures.make_translation(
    tmp_path / 'fruit', steps=50, every=50, pixels=4, images=1
  )
  paths = [make(tmp_path / 'a', 0.8), fruit, make(tmp_path / 'b', 0.9, seed=1)]
  html = page_of(paths, tmp_path)
  parts = re.findall(r'<section class="task" aria-label="(\w+)">', html)
  assert parts == ['classification', 'translation']
  ids = re.findall(r' id="([^"]*)"', html)
  assert len(ids) == len(set(ids))
  assert set(re.findall(r'href="#([^"]*)"', html)) <= set(ids)
  text = seen(html)
  assert '3 runs in 2 groups' in text or '3 runs in 3 groups' in text
  assert 'top-1, %' in text and 'FID: apple → orange' in text


def test_runs_that_were_trained_otherwise_are_not_called_alike(tmp_path):
  paths = [make(tmp_path / f'a_{s}', seed=s) for s in (0, 1, 2)]
  for path, rate in zip(paths, (0.1, 0.1, 0.2), strict=True):
    rows = [{'step': s, 'train/learning_rate': rate / s} for s in (1, 2)]
    report_fixtures.write_lines(path / 'metrics.jsonl', rows)
  text = seen(page_of(paths, tmp_path))
  assert 'Not all of a group was trained alike. a_2: the learning' in text
  assert groups.other_histories(groups_of(*paths[:2])) == []


def test_seeds_with_validation_parts_of_their_own_are_named(tmp_path):
  said = 'Validation numbers of other seeds are of other images'
  own, shared = (
    [
      make(tmp_path / f'{name}{seed}', seed=seed, data=keys | fraction)
      for seed in (0, 1)
    ]
    for fraction in [{'val_fraction': 0.1}]
    for name, keys in (('own', {}), ('shared', {'split_seed': 0}))
  )
  assert said in seen(page_of(own, tmp_path))
  assert said not in seen(page_of(shared, tmp_path))


def test_titles_that_disagree_keep_what_they_share():
  titles = ['FID, uncalibrated: apple → orange', 'FID, uncalibrated: mean']
  assert task_pages.common_title(titles[:1] * 2, 'val/fid_a2b') == titles[0]
  assert (
    task_pages.common_title(titles, 'val/fid_a2b') == 'FID, uncalibrated: a2b'
  )
  assert task_pages.common_title(['FID', 'KID'], 'val/fid') == 'val/fid'


# --- Which runs ------------------------------------------------------------


def test_runs_of_a_task_without_a_report_are_refused(tmp_path):
  for name in 'ab':
    (tmp_path / name).mkdir()
    text = config_lib.to_json(fid.get_config())
    (tmp_path / name / 'config.json').write_text(text)
  with pytest.raises(errors.UserError, match="'fid', of which no report"):
    report.compare([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'page.html')
  assert not (tmp_path / 'page.html').exists()


def test_patterns_leave_out_what_is_no_run_and_runs_come_once(seeds, tmp_path):
  (tmp_path / 'comparison.html').write_text('')
  (tmp_path / 'vit_other').mkdir()
  (tmp_path / 'vit_of_another_program').mkdir()
  other = tmp_path / 'vit_of_another_program' / 'config.json'
  other.write_text('{"architectures": ["ViT"]}')
  (tmp_path / 'link').symlink_to(seeds[2])
  entries = [f'{tmp_path}/vit_*', f'{seeds[0]}/', os.path.relpath(seeds[1])]
  entries.append(f'{tmp_path}/link')
  found = [run.path for run in comparison.read_runs(entries)]
  assert [str(path) for path in found] == [str(path) for path in seeds[:3]]


@pytest.mark.parametrize(
  'entries, message',
  [
    ([], 'needs --workdirs=RUN,RUN'),
    (['{}/a'], 'only run'),
    (['{}/a', '{}/a'], 'only run'),
    (['{}/a', '{}/none'], 'no folder .*none'),
    (['{}/a', '{}/empty'], r'empty is not a workdir: it has no config\.json'),
    (['{}'], r'It holds runs, though: give ".*/\*"'),
    (['{}/x*'], 'no folder there holds a run'),
    (['{}/a', 's3://b/a'], 'local disks and gs:// alone'),
    (['{}/a', 'http://b/*'], 'local disks and gs:// alone'),
    (['{}/a', '{}/damaged'], 'damaged'),
    (
      ['{}/a', '{}/foreign'],
      r'foreign/config\.json is damaged \(exp',
    ),
    (['{}/a', '{}/future'], "task='segmentation' is not one of"),
  ],
)
def test_mistakes_in_the_command_line(entries, message, tmp_path, capsys):
  make(tmp_path / 'a')
  (make(tmp_path / 'damaged') / 'config.json').write_text('{"task":')
  for name, content in (
    ('foreign', '[]'),
    ('future', '{"task":"segmentation"}'),
  ):
    (make(tmp_path / name) / 'config.json').write_text(content)
  (tmp_path / 'empty').mkdir()
  wanted = ','.join(entry.format(tmp_path) for entry in entries)
  assert call('--mode=report', f'--workdirs={wanted}') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(message, line)


@pytest.mark.parametrize(
  'name, content',
  [
    ('diagnostics.csv', 'step,loss\n1,2\n2,3,4\n'),
    ('metrics.jsonl', '{"step": 1}\n{"st\n{"step": 2}\n'),
    ('metrics.jsonl', '{"epoch": 1}\n'),
    ('predictions.npz', 'PK'),
    ('predictions.npz', ''),
  ],
)
def test_a_damaged_file_is_named(name, content, tmp_path):
  (make(tmp_path / 'a') / name).write_text(content)
  with pytest.raises(errors.UserError, match=f'{name} is damaged .*leave'):
    runs.read(tmp_path / 'a')


def call(*arguments):
  """Runs main.py with these arguments; returns the exit code."""
  values = flags.FlagValues()
  cli.define_flags(values, ['main.py'])
  cli.parse_or_exit(['main.py', *arguments], values)
  return cli.run_flags(values)


def test_command_line(seeds, tmp_path, capsys):
  folder = tmp_path / 'new' / 'folder'
  wanted = f'--workdirs={tmp_path}/vit*'
  assert call('--mode=report', wanted, f'--workdir={folder}') == 0
  assert capsys.readouterr().out == f'Comparison: {folder}/comparison.html\n'
  assert (folder / 'comparison.html').exists()
  twice = [f'--workdirs={tmp_path}/vit_*', f'--workdirs={tmp_path}/vit22b*']
  assert call('--mode=report', *twice, f'--workdir={folder}') == 0
  assert '6 runs in 2 groups' in (folder / 'comparison.html').read_text()
  odd = seeds[0].rename(tmp_path / 'rate=1,decay=0')
  for text in (f'"{odd}", {seeds[1]}', f'{seeds[1]}\n{seeds[2]}'):  # of `ls`
    text = f'--workdirs={text}'
    assert call('--mode=report', text, f'--workdir={folder}') == 0
  assert call(wanted) == 2
  assert 'is of --mode=report' in capsys.readouterr().err


def test_unwritable_output(seeds, tmp_path):
  with pytest.raises(errors.UserError, match='Could not'):
    report.compare(seeds, seeds[0] / 'config.json' / 'comparison.html')
  with pytest.raises(errors.UserError, match='gs:// alone'):
    report.compare(seeds, 'http://x/comparison.html')


# --- In a browser ----------------------------------------------------------

_PROBE = """
const all = (selector) => [...document.querySelectorAll(selector)];
const names = () => all('.results .group th').map((th) =>
  th.textContent.trim().split(/\\s/)[0]);
const timer = setInterval(() => {
  const charts = document.querySelectorAll('.chart').length;
  const drawn = document.querySelectorAll('.plot .main-svg .xtick').length;
  if (!drawn || !document.querySelector('.toggle [aria-pressed]')) return;
  clearInterval(timer);
  const head = document.querySelector('.results thead').rows[0].cells[2];
  const button = head.querySelector('button');
  for (const times of [1, 2, 3]) {
    button.focus();
    document.activeElement.click();
    say(head.getAttribute('aria-sort') + ' ' + names());
  }
  const unfold = document.querySelector('.unfold');
  const members = () => all('.member').filter((row) => row.offsetHeight).length;
  const before = members();
  unfold?.click();
  say('members ' + before + ' ' + members());
  const select = document.querySelector('.baseline select');
  select.value = 1;
  select.dispatchEvent(new Event('change'));
  say('baseline ' + all('.chosen')[0].textContent + ' ' +
    all('[data-baseline]').filter((body) => !body.hidden)
      .map((body) => body.rows[0].cells[1].firstChild.textContent) + ' ' +
    all('.choices .differs').map((cell) => cell.textContent));
  const table = document.querySelector('.choices').closest('table');
  table.tHead.rows[0].cells[2]?.querySelector('button').click();
  say('choices ' + [...table.tBodies[0].rows].map((row) =>
    row.cells[2]?.textContent.trim()));
  const lines = () => all('[id$=-curves] .chart .scatterlayer .trace').length;
  const full = lines();
  document.querySelector('.key button').click();
  document.querySelector('[data-axis=log]').click();
  setTimeout(() => say('lines ' + (lines() < full) + ' width ' +
    document.documentElement.scrollWidth + ' plots ' +
    all('.plot .plot-container').length + ' of ' + charts), 1000);
}, 100);
"""


@pytest.mark.slow
@pytest.mark.parametrize('width', [375, 1280])
def test_chromium(width, seeds, tmp_path):
  other = {'model': {'block': 'released'}, 'optim': {'learning_rate': 1e-5}}
  seeds.append(make(tmp_path / ('a_long_name' * 6), 0.1, **other))
  html = page_of(seeds, tmp_path)
  charts = html.count('data-chart=')
  long = 'a_long_name' * 6
  assert chromium.says(html, tmp_path, width, _PROBE) == [
    f'ascending {long},vit,vit22b',
    f'descending vit22b,vit,{long}',
    f'none vit,vit22b,{long}',
    'members 0 3',
    'baseline vit22b −5.00 vit,released,1e-05',
    'choices 1e-05,0.0005,0.0005',
    f'lines true width {width} plots {charts} of {charts}',
  ]


@pytest.mark.slow
def test_chromium_compares_translations(tmp_path):
  paths = [
    report_fixtures.make_translation(tmp_path / name, steps=400, weights=w)
    for name, w in (('a', 'random:0'), ('b', ''))
  ]
  html = page_of(paths, tmp_path)
  charts = html.count('data-chart=')
  said = chromium.says(html, tmp_path, 375, _PROBE)
  assert not [line for line in said if line.startswith('error')]
  assert said[-1].endswith(f'width 375 plots {charts} of {charts}')


@pytest.mark.slow
def test_chromium_prints_every_run(seeds, tmp_path):
  page = report.compare(seeds, tmp_path / 'comparison.html')
  pdf = chromium.printed(pathlib.Path(page), tmp_path)
  assert pdf.read_bytes().startswith(b'%PDF')
  if shutil.which('pdftotext'):
    text = subprocess.run(
      ['pdftotext', '-layout', pdf, '-'], capture_output=True, text=True
    ).stdout
    assert re.search(r'vit_seed2 +1 +81\.00', text)
    assert not re.search('show 3 runs|hide runs|Contents', text)


@pytest.mark.slow
def test_twenty_runs_stay_a_few_megabytes(tmp_path):
  for number in range(20):
    path = report_fixtures.make(
      tmp_path / f'run{number}', steps=20_000, depth=2, explode_at=15_000
    )
    config = report_fixtures.CONFIG | {'duration': f'{number + 20} epochs'}
    (path / 'config.json').write_text(json.dumps(config))
  page = report.compare([tmp_path / 'run*'], tmp_path / 'comparison.html')
  assert page.stat().length < 6e6
