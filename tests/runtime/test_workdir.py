"""Files of a run: tables that grow, stay whole, and shrink to a checkpoint."""

import csv
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from orbax.checkpoint._src.path import gcs_utils

from tests.helpers import data_fixtures
from vit22b_jax import api, errors, train
from vit22b_jax.runtime import formats, workdir


@pytest.fixture(params=['local', 'remote'])
def place(request, tmp_path, monkeypatch):
  """A workdir's address, and the local folder where its files are."""
  folder = tmp_path / 'bucket' / 'run'
  if request.param == 'local':
    return str(folder), folder
  data_fixtures.make_remote(monkeypatch, tmp_path)
  return 'gs://bucket/run', folder


def fill(run, steps):
  for step in steps:
    run.metrics(step, {'train/loss': 1 / step})
    run.diagnostics(step, {'loss': 1 / step, 'max_logit': math.inf})
    if step % 2:
      run.event({'step': step, 'kind': 'transient'})


def steps(folder, name):
  text = (folder / name).read_text()
  assert text.endswith('\n')
  if name.endswith('.csv'):
    return [int(row['step']) for row in csv.DictReader(text.splitlines())]
  return [json.loads(line)['step'] for line in text.splitlines()]


def tables(folder):
  return [
    steps(folder, name)
    for name in ('metrics.jsonl', 'diagnostics.csv', 'events.jsonl')
  ]


def test_tables_grow_with_every_flush_and_reopening(place):
  address, folder = place
  run = workdir.Workdir(address)
  fill(run, [1, 2])
  run.flush()
  assert tables(folder) == [[1, 2], [1, 2], [1]]
  fill(run, [3])
  run.close()
  run = workdir.Workdir(address)
  fill(run, [4])
  run.close()
  assert tables(folder) == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 3]]
  lines = (folder / 'diagnostics.csv').read_text().splitlines()
  assert lines[0] == 'step,loss,max_logit' and lines[3] == '3,0.333333333,inf'


def test_truncating_forgets_later_rows(place):
  address, folder = place
  run = workdir.Workdir(address)
  fill(run, [1, 2, 3, 4])
  run.close()
  run = workdir.Workdir(address)
  (folder / 'samples').mkdir()  # as object stores do
  for step in (0, 2, 3, 10):
    run.write_bytes(f'samples/a2b_{step:08d}.png', b'')
  run.truncate(2)
  pictures = sorted(path.name for path in (folder / 'samples').iterdir())
  assert pictures == ['a2b_00000000.png', 'a2b_00000002.png']
  assert tables(folder) == [[1, 2], [1, 2], [1]]
  fill(run, [3])
  run.close()
  assert tables(folder) == [[1, 2, 3], [1, 2, 3], [1, 3]]
  run.truncate(0)
  fill(run, [1])
  run.close()
  assert tables(folder) == [[1], [1], [1]]


def test_a_line_cut_off_by_a_crash_is_not_added_to(place):
  address, folder = place
  run = workdir.Workdir(address)
  fill(run, [1, 2])
  run.close()
  for name in ('metrics.jsonl', 'diagnostics.csv', 'events.jsonl'):
    with (folder / name).open('a') as file:
      file.write('{"step": 1' if name.endswith('l') else '3,0.')
  run = workdir.Workdir(address)
  run.truncate(2)
  fill(run, [3])
  run.close()
  assert tables(folder) == [[1, 2, 3], [1, 2, 3], [1, 3]]


def test_whole_files(place):
  address, folder = place
  run = workdir.Workdir(address)
  run.write_json('classes.json', ['cat', 'dog'])
  run.write_json('classes.json', ['cat'])
  assert formats.read_json(epath.Path(address) / 'classes.json') == ['cat']
  assert sorted(path.name for path in folder.iterdir()) == ['classes.json']


def test_json_is_strict(tmp_path):
  values = {'loss': float('nan'), 'grad': float('-inf'), 'top1': 0.5}
  run = workdir.Workdir(tmp_path)
  run.metrics(1, values)
  run.event({'step': 1, 'zscore': values})
  run.write_json('eval.json', {'values': [values]})
  run.close()

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  for path in tmp_path.iterdir():
    found = json.loads(path.read_text(), parse_constant=refuse)
    assert (
      "'nan'" in str(found) and "'-inf'" in str(found) and '0.5' in str(found)
    )


def test_tensorboard_forgets_what_a_crash_left(tmp_path):
  from tensorboard.backend.event_processing import plugin_event_accumulator
  from tensorboard.util import tensor_util

  run = workdir.Workdir(tmp_path, tensorboard=True)
  for step in (2, 4, 6):
    run.metrics(step, {'train/loss': step})
  run.image('samples', 6, np.zeros((3, 5, 3), np.uint8))
  run.close()
  time.sleep(1.1)  # event files are named by the second
  run = workdir.Workdir(tmp_path, tensorboard=True)
  run.truncate(4)
  run.metrics(6, {'train/loss': 60.0})
  run.close()
  events = plugin_event_accumulator.EventAccumulator(str(tmp_path))
  events.Reload()
  found = [
    (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
    for event in events.Tensors('train/loss')
  ]
  assert found == [(2, 2), (4, 4), (6, 60)]


def test_a_full_disk_is_one_message_and_leaves_whole_lines(tmp_path):
  run = workdir.Workdir(tmp_path)
  fill(run, [1, 2])
  run.flush()
  fill(run, range(3, 100))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
  try:
    with pytest.raises(errors.UserError, match=r'File too large\. Make room'):
      run.flush()
    with pytest.raises(errors.UserError, match='Make room'):
      run.write_json('eval.json', ['x' * 300])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not list(tmp_path.glob('*.new'))  # a part would take room
  assert steps(tmp_path, 'metrics.jsonl') == [1, 2]
  run.close()  # there is room again
  assert steps(tmp_path, 'metrics.jsonl') == list(range(1, 100))


def test_a_disk_that_fills_up_leaves_no_part_of_a_line(tmp_path):
  """Room for most of what waits, and then for the rest of it."""
  file = workdir.GrowingFile(tmp_path / 'rows')
  file.append('a' * 9)
  file.flush()
  for letter in 'bcd':
    file.append(letter * 39)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
  try:
    with pytest.raises(OSError, match='File too large'):
      file.flush()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert (tmp_path / 'rows').read_text() == 'a' * 9 + '\n'
  assert file.lines() == ['a' * 9, *(letter * 39 for letter in 'bcd')]


def test_rows_that_nothing_relies_on_wait_for_object_stores(place):
  address, folder = place
  run = workdir.Workdir(address)
  fill(run, [1, 2, 3])
  run.flush(remote=False)
  is_local = '://' not in address
  assert (folder / 'diagnostics.csv').exists() is is_local
  run.flush()
  assert tables(folder) == [[1, 2, 3], [1, 2, 3], [1, 3]]


def test_a_bucket_without_a_package_for_it_is_said(monkeypatch):
  monkeypatch.setattr(workdir.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(errors.UserError, match=r"pip install '\.\[tensorflow\]'"):
    workdir.Workdir('gs://bucket/run')


def test_the_commit_is_not_that_of_a_repository_around(tmp_path, monkeypatch):
  git = ['git', '-c', 'user.name=a', '-c', 'user.email=a', '-C', str(tmp_path)]
  commit = ['commit', '--quiet', '--allow-empty', '--message=theirs']
  for command in (['init', '--quiet'], commit):
    subprocess.run([*git, *command], check=True)
  module = tmp_path / 'workdir.py'
  module.write_text('')
  monkeypatch.setattr(workdir, '__file__', str(module))
  assert workdir.versions([])['git_commit'] is None
  for command in (['add', '.'], commit):
    subprocess.run([*git, *command], check=True)
  assert len(workdir.versions([])['git_commit']) == 40


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    (f'{__file__}/run', 'Not a directory'),
    ('s3://bucket/run', 'local disks and gs://'),
  ],
)
def test_places_that_cannot_be_written(path, message):
  with pytest.raises(errors.UserError, match=message):
    workdir.Workdir(path)


def test_only_the_writer_writes(tmp_path):
  run = workdir.Workdir(tmp_path / 'run', writer=False)
  fill(run, [1])
  run.write_json('eval.json', {})
  run.truncate(0)
  run.close()
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('arguments', 'command'),
  [
    (['/a/main.py', '--x=a b'], "python main.py '--x=a b'"),
    (['/bin/vit22b', '--list'], 'vit22b --list'),
    (['/a/__main__.py', '-h'], 'python -m vit22b_jax -h'),
    (['/bin/pytest'], None),
  ],
)
def test_versions_name_the_command(monkeypatch, arguments, command):
  monkeypatch.setattr(sys, 'argv', arguments)
  assert workdir.versions([])['command'] == command


def test_versions_name_software_and_devices():
  found = workdir.versions(['cpu:cpu'])
  assert found['devices'] == ['cpu:cpu']
  assert found['jax'].count('.') >= 2 and found['python'].startswith('3.')
  assert len((found['git_commit'] or '0' * 40).removesuffix('-dirty')) == 40


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """gs:// for epath and for TensorStore, which has its own client."""
  data_fixtures.make_remote(monkeypatch, tmp_path)
  (tmp_path / 'bucket').mkdir()

  def kvstore(path):
    local = os.fspath(path).replace('gs://', f'{tmp_path}/')
    slash = '' if local.endswith('/_sharding') else '/'  # a file, folders
    return {'driver': 'file', 'path': local + slash}

  monkeypatch.setattr(gcs_utils, 'get_kvstore_for_gcs', kvstore)
  monkeypatch.setattr(
    gcs_utils, 'is_hierarchical_namespace_enabled', lambda _: False
  )
  return tmp_path / 'bucket'


@pytest.mark.slow
def test_a_whole_run_on_a_remote_disk(bucket, capsys):
  """Train, start again, evaluate and load, all at a gs:// address."""
  from configs import digits_vit22b_ti
  from vit22b_jax import commands

  config = digits_vit22b_ti.get_config('tiny')
  config.log.tensorboard = False
  config.duration = '2 steps'
  mesh = commands.make_mesh(config)
  assert train.run(config, 'gs://bucket/run', mesh) == 0
  assert train.run(config, 'gs://bucket/run', mesh) == 0
  assert 'Resuming from checkpoint 2 of 2' in capsys.readouterr().out
  folder = bucket / 'run'
  assert steps(folder, 'diagnostics.csv') == [1, 2]
  assert {path.name for path in folder.iterdir()} >= {
    'config.json',
    'eval.json',
    'predictions.npz',
    'report.html',
    'checkpoints',
  }
  assert (folder / 'checkpoints' / '2' / 'state').is_dir()
  predictor = api.load('gs://bucket/run')
  model, variables = predictor.model, predictor.variables
  assert model.depth == 1 and 'block_00' in variables['params']
  assert not pathlib.Path('gs:').exists()
