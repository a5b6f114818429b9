"""The accelerator's measurements: rows, time limits, and going on."""

import dataclasses
import json
import re
import subprocess

import pytest

from experiments.accelerator import measure, rows, run, tables
from tests.helpers import data_fixtures

MACHINE = {'devices': ['gpu:x'], 'jax': '1', 'python': '3'}


@pytest.mark.parametrize('scale', ['full', 'tiny'])
def test_rows_have_names_of_their_own_and_measure_what_there_is(scale):
  found = list(rows.all_rows(scale))
  assert len({re.sub(r'\W+', '_', row.name) for row in found}) == len(found)
  for row in found:
    assert row.kind == 'train' or callable(getattr(measure, row.kind))
    assert row.least <= row.limit


def test_trainings_come_before_what_one_would_miss_least():
  kinds = [row.kind for row in rows.all_rows('full')]
  before = kinds[: kinds.index('train')]
  assert before == ['golden', *['parity'] * 2, *['throughput', 'peer'] * 2]


def test_a_row_that_is_done_is_not_measured_again(tmp_path, monkeypatch):
  calls = []

  def fake(row, seconds, given, source):
    calls.append(row.name)
    if row.name == 'golden files' and calls.count('golden files') == 1:
      return {'status': 'failed', 'error': 'no device'}
    return {'status': 'done', 'relative_error': {'a': 1e-6, 'b': float('nan')}}

  monkeypatch.setattr(run, 'measure', fake)
  monkeypatch.setattr(run, 'machine', lambda: MACHINE)
  arguments = ['--scale=tiny', f'--results={tmp_path}', '--minutes=1']
  run.main(arguments)
  first = list(calls)
  run.main(arguments)
  assert calls[len(first) :] == ['golden files']  # it had failed
  text = (tmp_path / 'results.md').read_text()
  assert '| golden files | a | 1e-06 |\n| golden files | b | nan |' in text
  monkeypatch.setattr(run, 'machine', lambda: MACHINE | {'devices': ['gpu:y']})
  del calls[:]
  run.main(arguments)
  assert len(calls) == len(set(first))  # another machine's rows are its own


def test_nothing_begins_without_time_or_data(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(run, 'machine', lambda: MACHINE)
  monkeypatch.setattr(tables, 'write', lambda folder: None)
  run.main(['--scale=tiny', f'--results={tmp_path}', '--minutes=0'])
  assert json.loads((tmp_path / 'results.json').read_text())['rows'] == {}
  assert 'no time is left' in capsys.readouterr().out


def test_a_cpu_is_no_accelerator(tmp_path, monkeypatch):
  monkeypatch.setattr(
    run, 'machine', lambda: MACHINE | {'devices': ['cpu:cpu']}
  )
  with pytest.raises(SystemExit, match='no accelerator; --scale=tiny'):
    run.main([f'--results={tmp_path}'])


@pytest.mark.parametrize(
  ('code', 'status', 'kept'), [(0, 'done', False), (2, 'failed', True)]
)
def test_a_training_that_fails_keeps_what_it_had(
  tmp_path, monkeypatch, code, status, kept
):
  """It may go on once the command line is mended."""
  row = next(r for r in rows.all_rows('tiny') if r.kind == 'train')
  given = run._parser().parse_args(['--scale=tiny', f'--runs={tmp_path}'])
  workdir = tmp_path / 'tiny' / re.sub(r'\W+', '_', row.name)
  workdir.mkdir(parents=True)
  done = subprocess.CompletedProcess([], code, stdout='', stderr='error: no')
  monkeypatch.setattr(run.subprocess, 'run', lambda *_, **__: done)
  monkeypatch.setattr(run, '_trained', lambda workdir: {})
  assert run.measure(row, 9.0, given, 'folder:x')['status'] == status
  assert workdir.exists() is kept


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path, monkeypatch):
  """The rows of classifiers, on one device, and one training of each kind."""
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  kinds = ('golden', 'parity', 'throughput', 'train')
  kept = [  # without their limits, which are an accelerator's
    dataclasses.replace(row, limit=3600.0)
    for row in rows.all_rows('tiny')
    if row.kind in kinds
  ]
  monkeypatch.setattr(rows, 'all_rows', lambda scale: iter(kept))
  arguments = ['--scale=tiny', '--minutes=60', f'--results={tmp_path}']
  counts = {'train': 40, 'test': 5}
  folder = data_fixtures.make_folder(tmp_path / 'data', counts=counts)
  images = f'folder:{folder}'
  arguments += [f'--cifar10={images}', f'--cifar100={images}']
  run.main([*arguments, f'--runs={tmp_path / "runs"}'])
  found = json.loads((tmp_path / 'results.json').read_text())['rows']
  assert {row['status'] for row in found.values()} == {'done'}
  assert len(found) == len(kept)
  assert found['golden files']['relative_error']['released_vit'] < 1e-5
  assert found['parity vit22b']['relative_error']['float32'] == 0
  assert found['figure 1: original']['stability']['explosion'] is None
  assert not any((tmp_path / 'runs').rglob('checkpoints'))
