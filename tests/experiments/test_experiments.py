"""The paper's experiments: searches end, numbers are those of the files."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import results, runner
from experiments.figure1_stability import cells as figure1
from experiments.figure1_stability import measure, tables
from experiments.figure1_stability import plots as figure1_plots
from experiments.figure2_classification import tables as figure2
from experiments.figure5_samples import run as figure5
from experiments.table1_parameters import count
from experiments.table1_parameters import tables as table1
from tests.helpers import report_fixtures
from vit22b_jax.report import samples


def _search(threshold, exponents=figure1.EXPONENTS):
  """Runs the bisection of one variant whose explosions begin at a rate."""
  rows = {}
  probes = 0
  while True:
    missing = [
      cell
      for cell in figure1.cells('cpu', rows)
      if cell.facts['stage'] == 'bisect'
      and cell.facts['variant'] == 'clip'
      and cell.name not in rows
    ]
    if not missing:
      return figure1.bounds('S', 'clip', rows), probes
    (cell,) = missing
    probes += 1
    assert cell.facts['exponent'] in exponents
    exploded = cell.facts['exponent'] >= threshold
    rows[cell.name] = {**cell.facts, 'explosion': 5 if exploded else None}


@pytest.mark.parametrize('threshold', [*figure1.EXPONENTS, 99])
def test_a_search_finds_the_lowest_exploding_rate(threshold):
  (low, high), probes = _search(threshold)
  assert high == min(threshold, figure1.EXPONENTS[-1] + 1)
  assert low == high - 1
  assert probes <= 4


def test_seeds_repeat_the_found_rate_and_half_of_it():
  name = 'pre_norm'
  rows = {
    str(k): {
      'stage': 'bisect',
      'size': 'S',
      'variant': name,
      'exponent': k,
      'explosion': e,
    }
    for k, e in ((1, None), (2, 7))
  }
  found = [
    (cell.facts['rate'], cell.facts['seed'])
    for cell in figure1.cells('cpu', rows)
    if cell.facts['stage'] == 'seeds'
  ]
  assert found == [(4e-3, 1), (4e-3, 2), (2e-3, 1), (2e-3, 2)]


def _workdir(folder, logits, rms):
  """A run with these largest logits and the residual RMS of two blocks."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(report_fixtures.CONFIG))
  lines = ['step,loss,max_logit,max_abs_grad,residual_rms/00,residual_rms/01']
  lines += [
    f'{i + 1},{0.5 if np.isfinite(v) else v},{v},1,{a},{b}'
    for i, (v, (a, b)) in enumerate(zip(logits, rms, strict=True))
  ]
  (folder / 'diagnostics.csv').write_text('\n'.join(lines) + '\n')
  return folder


def test_an_early_transient_is_told_from_a_late_explosion(tmp_path):
  logits = np.ones(200)
  logits[4] = 5000
  rms = np.ones((200, 2))
  rms[3:6, 1], rms[4, 0] = 20, 30
  row = measure.measure(_workdir(tmp_path / 'a', logits, rms))
  assert row['explosion'] == 5
  assert (row['steps_beyond'], row['steps_beyond_late']) == (1, 0)
  assert row['recovered']
  assert row['peak']['max_logit'] == [5000, 5]
  assert row['peak_late']['max_logit'] == [1, 101]
  assert row['origin']['residual_rms'] == {
    'step': 4,
    'layer': 1,
    'layers': 1,
    'factor': 20,
  }
  assert row['origin']['attn_logit_max'] is None
  logits[180:] = np.nan
  row = measure.measure(_workdir(tmp_path / 'b', logits, rms))
  assert not row['finite']
  assert not row['recovered']
  assert row['steps_beyond_late'] == 20
  assert row['last_loss'] is None
  json.dumps(row, allow_nan=False)


@pytest.mark.parametrize('kind', ['non_finite', 'explosion'])
def test_what_the_detector_called_an_explosion_is_one(tmp_path, kind):
  # A stream may overflow behind a final norm, a logit be large and negative.
  rms = np.array([[1, 1], [50, np.inf]])
  folder = _workdir(tmp_path / 'a', np.ones(2), rms)
  assert measure.measure(folder)['explosion'] is None
  event = {'step': 2, 'kind': kind, 'action': 'halt'}
  (folder / 'events.jsonl').write_text(f'{json.dumps(event)}\n')
  row = measure.measure(folder)
  assert row['explosion'] == 2
  assert not row['recovered']
  origin = row['origin']['residual_rms']
  assert (origin['step'], origin['layer']) == (2, 1)
  json.dumps(row, allow_nan=False)


def test_a_signal_that_begins_with_zero_is_measured_by_its_first_value(
  tmp_path,
):
  rms = np.array([[0, 1], [2, 1], [5, 1], [21, 1]])
  folder = _workdir(tmp_path / 'a', np.ones(4), rms)
  origin = measure.measure(folder)['origin']['residual_rms']
  assert (origin['step'], origin['layer']) == (4, 0)
  folder = _workdir(tmp_path / 'b', np.ones(4), np.zeros((4, 2)))
  assert measure.measure(folder)['origin']['residual_rms'] is None


def test_curves_with_and_without_a_value_are_drawn(tmp_path):
  logits = np.linspace(1, 5000, 200)
  folder = _workdir(tmp_path / 'a', logits, np.ones((200, 2)))
  row = {
    **measure.measure(folder),
    'images': 'jpeg',
    'stage': 'large',
    'size': 'B',
    'variant': 'original',
    'rate': 1e-3,
    'seed': 0,
    'steps': 200,
  }
  row['curve']['max_logit'][1][3] = None
  rows = {'a': row}
  assert figure1_plots.curves(rows, 'large') is not None
  assert figure1_plots.curves(rows, 'long') is None
  assert figure1_plots.rates(rows, 'S') is None
  line = tables.watched(rows, 'large').split('\n')[-1]
  assert '| 0.001 | 0 | 200 | 5,000 (200) | 1 (1) | 5e+03 |' in line


def test_a_difference_has_the_interval_of_a_welch_test():
  a, b = ([{'top1': v} for v in x] for x in ((0.5, 0.6, 0.7), (0.4, 0.5, 0.6)))
  # Means differ by 0.1; both variances are 0.01, so 4 degrees of freedom and
  # a standard error of sqrt(0.02 / 3); the t quantile is 2.776.
  half = 2.7764451 * np.sqrt(0.02 / 3)
  expected = f'+0.100 [{0.1 - half:+.3f}, {0.1 + half:+.3f}]'
  assert figure2.difference(a, b, 'top1') == expected
  assert figure2.difference(a[:1], b, 'top1').endswith('(too few seeds)')


def test_terms_add_up_to_the_model():
  terms = count.terms('released', 'Ti', 'released')
  assert sum(terms.values()) == table1.RELEASED['released', 'Ti']
  assert {table1.kind_of(path) for path in terms} == {
    *('block matrices', 'block biases', 'patch embedding', 'head'),
    *('class token, positions', 'head norm'),
  }


def test_a_strip_of_a_grid_is_one_of_its_rows():
  side = 7
  gap = samples.GAP
  grid = np.zeros((3 * side + 2 * gap, 2 * side + gap, 3), np.uint8)
  grid[side + samples.GAP : 2 * side + samples.GAP] = 9
  assert (figure5.strip(grid, 1) == 9).all()
  assert figure5.strip(grid, 1).shape == (side, 2 * side + samples.GAP, 3)
  assert (figure5.strip(grid, 0) == 0).all()


def test_pages_hold_the_newest_results():
  for path, text in results.pages().items():
    assert path.read_text() == text, 'run python -m experiments.results'


@pytest.mark.parametrize(
  'experiment', results.catalogue.EXPERIMENTS, ids=lambda e: e.name
)
def test_tables_and_pictures_are_of_the_newest_results(experiment, tmp_path):
  source = runner.results_file(experiment.results, 'cpu')
  rows = runner.read(source)
  experiment.render(experiment.results, tmp_path, 'cpu', rows)
  hint = 'run python -m experiments.results'
  made = {path.name for path in tmp_path.iterdir()}
  for name in made:
    kept = experiment.folder / name
    if name.endswith('.png'):
      assert results.documents.is_of(kept, source), hint
      with Image.open(kept) as image:
        assert min(image.size) > 100
    else:
      assert kept.read_text() == (tmp_path / name).read_text(), hint
