"""Sweeps go on where they were stopped, and skip what is done."""

import itertools
import json
import pathlib

import pytest

from experiments import catalogue, documents, runner

# What a run's program does here: notes that it ran, and writes its versions.
_PROGRAM = """
import pathlib, sys
folder = pathlib.Path(sys.argv[-1].removeprefix('--workdir='))
folder.mkdir(parents=True, exist_ok=True)
(folder / 'checkpoints').mkdir(exist_ok=True)
(folder / 'versions.json').write_text('{"package": "1.2"}')
with (folder / 'ran').open('a') as file:
  file.write(' '.join(sys.argv[1:-1]) + chr(10))
value = int(sys.argv[1].partition('=')[2])
sys.exit({7: 3, 8: 5}.get(value, 0))
"""


def _cell(value, name=None):
  return runner.Cell(
    name=name or f'cell{value}',
    keys={'value': value},
    facts={'value': value},
    program=('-c', _PROGRAM),
  )


def _experiment(values, then=lambda rows: ()):
  """Runs of these values, and of those that rows so far lead to."""

  def cells(scale, rows):
    del scale
    return [_cell(value) for value in (*values, *then(rows))]

  def measure(cell, workdir, results):
    assert (workdir / 'checkpoints').exists()
    assert results.exists()
    return {'double': 2 * cell.facts['value']}

  def render(results, folder, scale, rows):
    (folder / 'rendered').write_text(f'{scale} {len(rows)} {results.name}')

  return runner.Experiment(
    'trial', 'What?', cells, measure, render, scales=('cpu', 'full')
  )


def _run(experiment, tmp_path, *flags):
  given = [f'--results={tmp_path / "r"}', f'--runs={tmp_path / "w"}']
  runner.main(experiment, [*given, *flags])
  return runner.read(tmp_path / 'r' / 'results.json')


def _ran(tmp_path, name):
  return (tmp_path / f'w/trial/cpu_{name}/ran').read_text().splitlines()


def test_rows_hold_what_was_run_and_measured(tmp_path):
  rows = _run(_experiment([1, 7]), tmp_path, '--jobs=2')
  assert rows['cell1'].keys() == {
    *('name', 'arguments', 'value', 'exit_code', 'seconds', 'cpu_seconds'),
    *('cores', 'versions', 'double'),
  }
  assert rows['cell1']['arguments'] == ['--config.value=1']
  assert rows['cell1']['versions'] == {'package': '1.2'}
  assert rows['cell1']['double'] == 2
  assert rows['cell7']['exit_code'] == 3  # an explosion is a result
  assert (tmp_path / 'r/rendered').read_text() == 'cpu 2 r'
  assert not (tmp_path / 'w/trial/cpu_cell1/checkpoints').exists()


def test_what_is_done_is_skipped_and_what_changed_is_not(tmp_path):
  _run(_experiment([1]), tmp_path)
  _run(_experiment([1, 2]), tmp_path)
  assert len(_ran(tmp_path, 'cell1')) == 1
  changed = _experiment([])
  changed = runner.dataclasses.replace(
    changed, cells=lambda scale, rows: [_cell(3, name='cell1')]
  )
  rows = _run(changed, tmp_path)
  assert _ran(tmp_path, 'cell1') == ['--config.value=3']  # its workdir is new
  assert rows['cell1']['value'] == 3
  assert list(rows) == ['cell1', 'cell2']


def test_later_cells_may_depend_on_rows(tmp_path):
  def then(rows):
    return [row['double'] for row in rows.values() if row['double'] < 8]

  rows = _run(_experiment([1], then), tmp_path)
  assert [row['value'] for row in rows.values()] == [1, 2, 4]


def test_rows_come_as_the_cells_do(tmp_path):
  _run(_experiment([2]), tmp_path)
  rows = _run(_experiment([3, 1, 2]), tmp_path, '--jobs=2')
  assert list(rows) == ['cell3', 'cell1', 'cell2']


def test_a_failed_run_is_named_and_what_was_done_stays(tmp_path):
  with pytest.raises(SystemExit, match=r'cell8 ended with code 5') as error:
    _run(_experiment([1, 8, 2]), tmp_path)
  log = tmp_path / 'w/trial/cpu_cell8.log'
  assert str(log) in str(error.value)
  assert log.read_text().startswith('$ ')
  rows = runner.read(tmp_path / 'r/results.json')
  assert list(rows) == ['cell1']
  assert not (tmp_path / 'r/rendered').exists()


def test_runs_that_fail_together_are_one_clear_error(tmp_path, monkeypatch):
  """The second has ended, too, when the sweep stops it."""
  monkeypatch.setattr(runner, '_POLL_SECONDS', 3)
  both = runner.dataclasses.replace(
    _experiment([]), cells=lambda *_: [_cell(8, 'first'), _cell(8, 'second')]
  )
  with pytest.raises(SystemExit, match='first ended with code 5'):
    _run(both, tmp_path, '--jobs=2')
  note = tmp_path / 'w/trial/cpu_second.started.json'
  assert json.loads(note.read_text())['seconds'] > 0


def test_scales_have_their_own_results(tmp_path):
  _run(_experiment([1]), tmp_path, '--scale=full')
  assert (tmp_path / 'r/results_full.json').exists()
  assert not (tmp_path / 'r/results.json').exists()


@pytest.mark.parametrize(
  'experiment', catalogue.EXPERIMENTS, ids=lambda e: e.name
)
def test_no_two_scales_of_an_experiment_are_the_same_runs(experiment):
  runs = [experiment.cells(scale, {}) for scale in experiment.scales]
  assert all(a != b for a, b in itertools.combinations(runs, 2))


@pytest.mark.parametrize(
  ('experiment', 'scale'),
  [(e, scale) for e in catalogue.EXPERIMENTS for scale in e.scales],
  ids=lambda part: getattr(part, 'name', part),
)
def test_experiments_have_apart_cells_in_order(experiment, scale):
  cells = experiment.cells(scale, {})
  names = [cell.name for cell in cells]
  assert names
  assert len(set(names)) == len(names)
  assert experiment.missing(scale, {}) == cells
  for cell in cells:
    path = cell.config.partition(':')[0]
    assert not path or (runner.ROOT / path).exists(), path


@pytest.mark.parametrize(
  'experiment', catalogue.EXPERIMENTS, ids=lambda e: e.name
)
def test_results_of_every_experiment_are_kept(experiment):
  path = runner.results_file(experiment.results, 'cpu')
  rows = json.loads(path.read_text())
  assert rows
  for row in rows:
    assert row['seconds'] > 0
    assert row['versions']['git_commit']
  assert 'no results' not in catalogue.status(experiment, 'cpu')


def test_a_picture_tells_its_results(tmp_path):
  results = tmp_path / 'results.json'
  results.write_text('[]')
  picture, (panel,) = documents.panels(2, 2, ['Title'], 'step')
  panel.plot([1, 2])
  shown = documents.save(picture, tmp_path, 'x', 'A line', results)
  assert shown == '![A line](x.png)'
  assert documents.is_of(tmp_path / 'x.png', results)
  results.write_text('[1]')
  assert not documents.is_of(tmp_path / 'x.png', results)
  full = tmp_path / 'results_full.json'
  full.write_text('[]')
  assert 'x_full.png' in documents.save(picture, tmp_path, 'x', '', full)
  assert documents.is_of(tmp_path / 'x_full.png', full)


def test_a_table_and_its_place_in_a_page():
  text = documents.table(('a', '#b'), [['x', 1]])
  assert text == '| a | b |\n|---|--:|\n| x | 1 |'
  page = 'Above\n<!-- results -->\nold\n<!-- /results -->\nbelow\n'
  filled = documents.fill(page, text)
  assert filled.startswith('Above\n<!-- results -->\n\n| a | b |')
  assert filled.endswith('| x | 1 |\n\n<!-- /results -->\nbelow\n')
  assert documents.fill(filled, text) == filled


def test_no_experiment_lies_beside_the_catalogue():
  folders = {
    path.parent.name
    for path in pathlib.Path(runner.ROOT, 'experiments').glob('*/run.py')
  }
  folders.remove('accelerator')  # measures a machine, no table of the paper
  assert folders == {e.name for e in catalogue.EXPERIMENTS}


def test_seconds_add_up_over_starts(tmp_path):
  note = tmp_path / 'w/trial/cpu_cell1.started.json'
  note.parent.mkdir(parents=True)
  started = {'arguments': _cell(1).arguments(), 'seconds': 1000}
  note.write_text(json.dumps(started))
  rows = _run(_experiment([1]), tmp_path)
  assert 1000 < rows['cell1']['seconds'] < 1100
  (tmp_path / 'r/results.json').unlink()
  rows = _run(_experiment([1]), tmp_path)
  assert rows['cell1']['seconds'] < 100
  assert len(_ran(tmp_path, 'cell1')) == 1  # what was done is begun anew


@pytest.mark.parametrize('same', [True, False])
def test_an_unfinished_run_goes_on_if_its_command_is_the_same(same, tmp_path):
  with pytest.raises(SystemExit):
    _run(_experiment([8]), tmp_path)
  note = tmp_path / 'w/trial/cpu_cell8.started.json'
  assert json.loads(note.read_text())['seconds'] > 0
  changed = runner.dataclasses.replace(
    _experiment([]), cells=lambda scale, rows: [_cell(1, name='cell8')]
  )
  if same:
    started = {'arguments': _cell(1).arguments(), 'seconds': 0}
    note.write_text(json.dumps(started))
  _run(changed, tmp_path)
  assert len(_ran(tmp_path, 'cell8')) == 1 + same


def test_no_runs_at_a_time_is_a_mistake(tmp_path, capsys):
  with pytest.raises(SystemExit) as error:
    _run(_experiment([1]), tmp_path, '--jobs=0')
  assert error.value.code == 2
  assert '--jobs=0: give 1 or more' in capsys.readouterr().err
