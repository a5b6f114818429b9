"""The accelerator's measurements: rows, time limits, and going on."""

import dataclasses
import json

import pytest

from experiments.accelerator import measure, rows, run, tables


@pytest.mark.parametrize('scale', ['full', 'tiny'])
def test_rows_have_names_of_their_own_and_measure_what_there_is(scale):
  found = list(rows.all_rows(scale))
  assert len({row.name for row in found}) == len(found)
  for row in found:
    assert row.kind == 'train' or callable(getattr(measure, row.kind))
    assert row.least <= row.limit


def test_a_row_that_is_done_is_not_measured_again(tmp_path, monkeypatch):
  calls = []

  def fake(row, seconds, given, source, before):
    calls.append(row.name)
    if row.name == 'golden files' and calls.count('golden files') == 1:
      return {'status': 'failed', 'error': 'no device'}
    return {'status': 'done', 'relative_error': 1e-6}

  monkeypatch.setattr(run, 'measure', fake)
  monkeypatch.setattr(
    run, 'machine', lambda: {'devices': ['x'], 'jax': '1', 'python': '3'}
  )
  arguments = ['--scale=tiny', f'--results={tmp_path}', '--minutes=1']
  run.main(arguments)
  first = list(calls)
  run.main(arguments)
  assert calls[len(first) :] == ['golden files']  # it had failed
  text = (tmp_path / 'results.md').read_text()
  assert '| golden files | 1e-06 |' in text
  monkeypatch.setattr(
    run, 'machine', lambda: {'devices': ['y'], 'jax': '1', 'python': '3'}
  )
  del calls[:]
  run.main(arguments)
  assert len(calls) == len(set(first))  # another machine's rows are its own


def test_nothing_begins_without_time_or_data(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(run, 'machine', dict)
  monkeypatch.setattr(tables, 'write', lambda folder: None)
  run.main(['--scale=tiny', f'--results={tmp_path}', '--minutes=0'])
  assert json.loads((tmp_path / 'results.json').read_text())['rows'] == {}
  assert 'no time is left' in capsys.readouterr().out


def test_figure_2_shares_the_time_that_is_left():
  row = next(r for r in rows.all_rows('full') if r.name.startswith('figure 2'))
  before = {
    'ours vit S/4 32 px, batch 512': {
      'status': 'done',
      'images_per_second': 9000.0,
    }
  }
  found = run._fitted(row, 600.0, before)
  assert found['duration'] == '20 epochs'  # 600 / 4 * 2 / 3 * 9000 / 45000


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path, monkeypatch):
  """The rows of classifiers, on one device."""
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  kinds = ('golden', 'parity', 'throughput')
  kept = [  # without their limits, which are an accelerator's
    dataclasses.replace(row, limit=3600.0)
    for row in rows.all_rows('tiny')
    if row.kind in kinds
  ]
  monkeypatch.setattr(rows, 'all_rows', lambda scale: iter(kept))
  arguments = ['--scale=tiny', '--minutes=60', f'--results={tmp_path}']
  run.main([*arguments, f'--runs={tmp_path / "runs"}'])
  found = json.loads((tmp_path / 'results.json').read_text())['rows']
  assert {row['status'] for row in found.values()} == {'done'}
  assert len(found) == len(kept)
  assert found['golden files']['relative_error']['released_vit'] < 1e-5
  assert found['parity vit float32']['relative_error'] == 0
