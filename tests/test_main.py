"""The command line as users meet it: every mode, signals, exit codes.

Processes are started where a process is the point (files from one command,
signals); what else the command line does runs in this process, `call`.
"""

import csv
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import flags

from tests.helpers import data_fixtures
from vit22b_jax import api, cli
from vit22b_jax.runtime import preemption
from vit22b_jax.tasks import evaluators
from vit22b_jax.weights import pretrained

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f'--config={ROOT}/configs/digits_vit22b_ti.py:tiny'
QUIET = '--noconfig.log.tensorboard'  # imports TensorFlow
LONG = (
  '--config.duration=100000 steps',
  '--config.eval.every=50%',
  '--config.checkpoint.every=50%',
  '--config.log.every=50%',
)


def call(*arguments):
  """Runs main.py with these arguments; returns the exit code."""
  argv = ['main.py', *map(str, arguments)]
  sys.modules.pop('config_config', None)  # the file that was loaded last
  values = flags.FlagValues()
  cli.define_flags(values, argv)
  try:
    cli.parse_or_exit(argv, values)
  except SystemExit as end:
    return end.code
  return cli.run_flags(values)


def start(*arguments, cwd=None, start_new_session=False, **variables):
  """A process of main.py; ulimit=N: with files of at most N x 512 bytes."""
  command = [sys.executable, ROOT / 'main.py', *map(str, arguments)]
  if limit := variables.pop('ulimit', None):
    command = ['sh', '-c', f'ulimit -f {limit}; exec "$0" "$@"', *command]
  return subprocess.Popen(
    command,
    cwd=cwd,
    start_new_session=start_new_session,
    env={**os.environ, **variables},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """One command in an empty folder: the folder, and what it printed."""
  cwd = tmp_path_factory.mktemp('first')
  process = start(CONFIG, QUIET, '--config.model.mlp_dim=48', cwd=cwd)
  out, err = process.communicate()
  assert process.returncode == 0, err
  return cwd / 'runs' / 'digits_vit22b_ti', out, err


@pytest.fixture
def trained(first, tmp_path):
  """A copy of that run's folder, to change."""
  return shutil.copytree(first[0], tmp_path / 'run')


def snapshot(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name not in ('report.html', 'versions.json')
  }


def steps(workdir):
  lines = (workdir / 'diagnostics.csv').read_text().splitlines()[1:]
  return [int(line.split(',')[0]) for line in lines]


# --- Training --------------------------------------------------------------


def test_one_command_trains_evaluates_and_reports(first):
  workdir, out, err = first
  model = json.loads((workdir / 'config.json').read_text())['model']
  assert (model['depth'], model['width'], model['mlp_dim']) == (1, 32, 48)
  assert steps(workdir) == [1, 2, 3, 4]
  assert (workdir / 'eval.json').exists()
  assert 'Starting from scratch, seed 0.' in out
  assert 'Result on the test part (359 images' in out
  assert f'Report: {workdir.relative_to(workdir.parent.parent)}' in out
  assert len(out.splitlines()) < 40
  # Nobody else's warnings: one line, of where the data come from.
  others = ('WARNING: All log messages before absl', 'I0000')  # CUDA's, no GPU
  lines = [line for line in err.splitlines() if not line.startswith(others)]
  assert [line.split(':')[0] for line in lines] == ['data digits']


def test_the_same_command_again_changes_nothing(trained, capsys):
  before = snapshot(trained)
  again = (CONFIG, QUIET, '--config.model.mlp_dim=48', f'--workdir={trained}')
  assert call(*again) == 0
  assert snapshot(trained) == before
  assert 'Resuming from checkpoint 4 of 4 steps' in capsys.readouterr().out


@pytest.mark.slow
def test_a_longer_run_resumes_from_the_workdir_alone(trained, capsys):
  config = json.loads((trained / 'config.json').read_text())
  config['duration'] = '5 steps'
  config['profile'] = '5'
  (trained / 'config.json').write_text(json.dumps(config))
  assert call(f'--workdir={trained}') == 0
  out = capsys.readouterr().out
  assert 'Resuming from checkpoint 4 of 5 steps' in out
  assert f'Trace of steps 5 to 5: {trained}/profile' in out
  assert list((trained / 'profile').rglob('*.xplane.pb'))
  assert steps(trained) == [1, 2, 3, 4, 5]


# --- Other modes -----------------------------------------------------------


def test_eval_from_the_workdir_alone(trained, capsys):
  before = snapshot(trained)
  expected = json.loads((trained / 'eval.json').read_text())
  (trained / 'eval.json').unlink()
  assert call('--mode=eval', f'--workdir={trained}') == 0
  found = json.loads((trained / 'eval.json').read_text())
  assert found == pytest.approx(expected)
  assert snapshot(trained).keys() == before.keys()
  assert f'top-1 {expected["top1"]:.4f}' in capsys.readouterr().out


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """Twelve images at two depths, two files that aren't, and a text."""
  folder = tmp_path_factory.mktemp('pictures')
  data_fixtures.make_folder(folder, counts={'train': 4})
  (folder / 'train' / 'broken.png').write_bytes(b'\x89PNG\r\n')
  (folder / 'empty.jpg').write_bytes(b'')
  (folder / 'notes.txt').write_text('not an image')
  return folder


def test_predict_from_the_workdir_alone(trained, pictures):
  process = start(
    '--mode=predict', f'--workdir={trained}', f'--input={pictures}', '--top_k=3'
  )
  out, err = process.communicate()
  assert process.returncode == 0, err
  assert out == (trained / 'predictions.csv').read_text()
  rows = list(csv.DictReader(io.StringIO(out)))
  assert rows[0].keys() == {'file', 'class', 'probability'}
  files = [row['file'] for row in rows]
  assert files == sorted(files) and len(files) == 12 * 3
  assert files[0] == 'train/bird/000.png'
  for i in range(0, len(rows), 3):
    found = [float(row['probability']) for row in rows[i : i + 3]]
    assert found == sorted(found, reverse=True)
    assert len({row['class'] for row in rows[i : i + 3]}) == 3
  assert {row['class'] for row in rows} <= {str(i) for i in range(10)}
  left = re.findall(r'(\S+) could not be read \(.*\); left out', err)
  assert left == ['empty.jpg', 'train/broken.png']


def leaves(tree):
  found = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in found}


def test_export_is_read_again_and_starts_other_runs(
  trained, tmp_path, capsys, monkeypatch
):
  assert call('--mode=export', f'--workdir={trained}') == 0
  file = trained / 'model.safetensors'
  assert str(file) in capsys.readouterr().out
  predictor = api.load(trained)
  model, variables = predictor.model, predictor.variables
  expected = leaves(variables['params'])
  empty = jax.tree.map(np.zeros_like, variables['params'])
  found = leaves(pretrained.load_pretrained(file, model, empty, 8))
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, name)
  monkeypatch.setenv('HOME', str(trained))
  starts_from(f'~/{file.name}', expected, tmp_path, capsys)


def starts_from(source, expected, tmp_path, capsys, *more):
  """A run with --config.init_from=source: its weights but for the head."""
  code = call(
    CONFIG,
    QUIET,
    '--config.model.mlp_dim=48',
    '--config.duration=1 steps',
    '--config.optim.learning_rate=1e-30',
    f'--config.init_from={source}',
    f'--workdir={tmp_path / "other"}',
    *more,
  )
  assert code == 0
  assert f'Starting from the weights of {source}' in capsys.readouterr().out
  found = leaves(api.load(tmp_path / 'other').variables['params'])
  for name, array in expected.items():
    if found[name].shape == array.shape:
      np.testing.assert_allclose(found[name], array, rtol=1e-6, err_msg=name)
  return found


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(trained, tmp_path, capsys):
  expected = leaves(api.load(trained).variables['params'])
  found = starts_from(trained, expected, tmp_path, capsys)
  assert all(found[name].shape == a.shape for name, a in expected.items())
  shutil.rmtree(tmp_path / 'other')
  images = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 9})
  own = (f'--config.data.name=folder:{images}', '--config.data.augment=none')
  found = starts_from(trained, expected, tmp_path, capsys, *own)
  assert [
    name for name, array in found.items() if array.shape != expected[name].shape
  ] == ["['head']['logits']['bias']", "['head']['logits']['kernel']"]


def test_a_config_beside_the_workdir_changes_how_not_what(trained, capsys):
  again = (CONFIG, '--config.model.mlp_dim=48', f'--workdir={trained}')
  assert call('--mode=eval', *again, '--config.eval.checkpoint=last') == 0
  assert json.loads((trained / 'eval.json').read_text())['step'] == 4
  assert call('--mode=eval', *again, '--config.seed=5') == 2
  assert 'seed: 0 there, 5 here' in capsys.readouterr().err


# --- Signals ---------------------------------------------------------------


def wait_for(process, text):
  for line in process.stdout:
    if text in line:
      return
  pytest.fail(f'never said {text!r}: {process.stderr.read()}')


def saved_steps(workdir):
  found = (workdir / 'checkpoints').glob('[0-9]*')
  return sorted(int(path.name) for path in found if path.name.isdigit())


def test_signals_save_everything_and_the_same_command_resumes(tmp_path):
  command = (CONFIG, QUIET, *LONG, f'--workdir={tmp_path}')
  process = start(*command)
  wait_for(process, 'First step done')
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate()
  assert process.returncode == 143
  assert 'SIGTERM: saving everything' in err and 'Traceback' not in err
  assert 'Stopped by SIGTERM; everything is saved' in out
  (done,) = saved_steps(tmp_path)
  assert steps(tmp_path) == list(range(1, done + 1))

  process = start(*command)
  wait_for(process, f'Resuming from checkpoint {done} of 100000 steps')
  wait_for(process, 'First step done')
  process.send_signal(signal.SIGINT)
  _, err = process.communicate()
  assert process.returncode == 130 and 'Traceback' not in err
  assert saved_steps(tmp_path)[0] == done
  assert saved_steps(tmp_path)[1] > done
  assert steps(tmp_path) == list(range(1, saved_steps(tmp_path)[1] + 1))


def test_signal_before_the_first_step(tmp_path):
  process = start(
    CONFIG,
    QUIET,
    f'--workdir={tmp_path}',
    JAX_ENABLE_COMPILATION_CACHE='0',  # so that the step takes its time
  )
  wait_for(process, 'Starting from scratch')
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate()
  assert process.returncode == 143
  assert 'Stopped by SIGTERM: there was nothing to save yet.' in err
  assert 'Traceback' not in err
  assert saved_steps(tmp_path) == []


def test_a_second_process_in_a_workdir_is_refused(tmp_path, capsys):
  command = (CONFIG, QUIET, *LONG, f'--workdir={tmp_path}')
  process = start(*command)
  wait_for(process, 'First step done')
  assert 'is in use: another process' in refused(capsys, *command)
  process.kill()
  process.communicate()
  assert call(CONFIG, QUIET, f'--workdir={tmp_path}') == 0


@pytest.mark.parametrize('part', ['val', 'test'])
def test_signal_leaves_an_evaluation_and_saves(
  first, tmp_path, monkeypatch, part
):
  """In the middle of the first validation, or of the final evaluation."""
  original = evaluators.ClassificationEvaluator.evaluate

  def evaluate_(self, variables, split):
    if split is getattr(self.data, part):
      os.kill(os.getpid(), signal.SIGTERM)
    return original(self, variables, split)

  command = (
    CONFIG,
    QUIET,
    '--config.model.mlp_dim=48',
    f'--workdir={tmp_path}',
  )
  with monkeypatch.context() as patch:
    patch.setattr(evaluators.ClassificationEvaluator, 'evaluate', evaluate_)
    assert call(*command) == 143
  step = {'val': 2, 'test': 4}[part]
  assert saved_steps(tmp_path)[-1] == step == steps(tmp_path)[-1]
  assert not (tmp_path / 'eval.json').exists()
  assert call(*command) == 0
  for name in ('eval.json', 'diagnostics.csv'):
    assert (tmp_path / name).read_text() == (first[0] / name).read_text()


def test_signal_while_the_first_validation_compiles(tmp_path, monkeypatch):
  """Everything has been saved: the process ends at once."""
  ended = []

  def evaluate_(self, variables, split):
    self.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    while not ended:
      time.sleep(0.01)
    self.poll()

  def exit_(code):
    ended.append((code, saved_steps(tmp_path), steps(tmp_path)))

  monkeypatch.setattr(evaluators.ClassificationEvaluator, 'evaluate', evaluate_)
  monkeypatch.setattr(preemption.Watcher, 'exit', staticmethod(exit_))
  more = ('--config.model.mlp_dim=48', '--config.checkpoint.every=3 steps')
  assert call(CONFIG, QUIET, *more, f'--workdir={tmp_path}') == 143
  assert ended == [(143, [2], [1, 2])]


@pytest.mark.slow
def test_worker_processes_leave_signals_to_the_main_process(tmp_path):
  """Ctrl-C reaches every process of the terminal's group."""
  images = data_fixtures.make_folder(tmp_path / 'data', counts={'train': 20})
  process = start(
    f'--config={ROOT}/configs/folder.py:tiny',
    QUIET,
    *LONG,
    f'--config.data.name=folder:{images}',
    '--config.data.cache_max_gb=0',
    '--config.data.image_size=16',
    '--config.data.workers=2',
    f'--workdir={tmp_path}/run',
    start_new_session=True,
  )
  wait_for(process, 'First step done')
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate()
  assert process.returncode == 130 and 'Traceback' not in err, err
  (done,) = saved_steps(tmp_path / 'run')
  assert steps(tmp_path / 'run') == list(range(1, done + 1))
  with pytest.raises(ProcessLookupError):  # nobody is left behind
    for _ in range(100):
      os.killpg(process.pid, 0)
      time.sleep(0.1)


# --- Mistakes --------------------------------------------------------------


def refused(capsys, *arguments):
  """The one message of a command that ends with code 2."""
  capsys.readouterr()
  assert call(*arguments) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and 'Traceback' not in err
  assert err.count('error: ') == 1
  return err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'Give --config=FILE'),
    (['--mode=evil'], 'train|eval|predict|export'),
    ([CONFIG, '--config.optim.learning_rat=1'], "mean 'optim.learning_rate'"),
    ([CONFIG, '--config.optim.name=adamm'], "mean 'adam'"),
    ([CONFIG, '--config.model.block=vit23b'], 'vit22b'),
    ([CONFIG, '--config.profile=5-2'], "profile='5-2': expected the first"),
    ([CONFIG, '--config.profile=3-9'], 'not within the 4 steps'),
    ([CONFIG, '--process_id=1'], '--coordinator and --num_processes missing'),
    ([CONFIG, '--config.data.image_size=9'], '9 is not a multiple of'),
    ([CONFIG, '--config.model.num_heads=5'], 'num_heads=5'),
    ([CONFIG, '--config.batch_size=12'], '12 is not divisible by the 8 dev'),
    ([CONFIG, '--config.mesh.tensor=3'], 'mesh.tensor=3'),
    ([CONFIG, '--config.batch_size=2000'], '1294 images, fewer than'),
    ([CONFIG, '--config.data.name=folder:/nowhere'], "no folder '/nowhere'"),
    ([CONFIG, '--config.init_from=/nowhere.npz'], 'no such file of weights'),
    ([CONFIG, f'--workdir={__file__}/run'], 'test_main.py/run: Not a dir'),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_mistakes_are_one_message(arguments, message, tmp_path, capsys):
  if CONFIG in arguments and '--workdir' not in arguments[-1]:
    arguments = [*arguments, QUIET, f'--workdir={tmp_path}']
  assert message in refused(capsys, *arguments)


def test_data_folders_are_judged_before_anything_is_claimed(tmp_path, capsys):
  """And a start that failed doesn't stand in the way of the next one."""
  data, workdir = tmp_path / 'data', tmp_path / 'run'
  config = f'--config={ROOT}/configs/folder.py:tiny'
  command = (
    config,
    QUIET,
    '--config.data.image_size=16',
    f'--config.data.name=folder:{data}',
    f'--workdir={workdir}',
  )
  data.mkdir()
  assert 'no train folder' in refused(capsys, *command)
  data_fixtures.make_folder(data, counts={'train': 8, 'test': 2})
  for file in (data / 'train' / 'cat').iterdir():
    file.write_bytes(b'nothing')
  assert '8 corrupt image(s)' in refused(capsys, *command)
  some = (*command, '--config.data.max_corrupt=8')
  assert 'no readable image' in refused(capsys, *some)
  shutil.rmtree(data / 'train' / 'cat')
  (data / 'train' / 'cat').mkdir()
  assert 'no image in class folder' in refused(capsys, *some)
  assert not workdir.exists()


def test_a_start_whose_weights_do_not_fit_is_not_in_the_way(tmp_path, capsys):
  weights, workdir = tmp_path / 'w.safetensors', tmp_path / 'run'
  safetensors.numpy.save_file({'other': np.zeros(3, np.float32)}, weights)
  start = f'--config.init_from={weights}'
  arguments = CONFIG, QUIET, f'--workdir={workdir}'
  assert 'lacks cls_token' in refused(capsys, *arguments, start)
  assert call(*arguments, '--config.duration=1 steps') == 0


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--mode=predict'], 'needs --input=FOLDER'),
    (['--mode=predict', '--input=/nowhere'], '--input=/nowhere is not'),
    (['--mode=predict', '--input={empty}'], 'holds no readable image'),
    (['--mode=predict', '--input={empty}', '--top_k=0'], 'expected 1 to 10'),
    (['--mode=predict', '--input={empty}', '--top_k=11'], 'expected 1 to 10'),
    ([CONFIG, '--config.seed=7'], 'seed: 0 there, 7 here'),
  ],
)
def test_mistakes_leave_a_run_as_it_is(
  trained, tmp_path, arguments, message, capsys
):
  (tmp_path / 'empty').mkdir()
  before = snapshot(trained)
  arguments = [x.format(empty=tmp_path / 'empty') for x in arguments]
  assert message in refused(capsys, *arguments, f'--workdir={trained}')
  assert snapshot(trained) == before


def test_folders_that_are_no_runs(trained, tmp_path, capsys):
  for mode in ('eval', 'export'):
    (tmp_path / 'empty').mkdir(exist_ok=True)
    err = refused(capsys, f'--mode={mode}', f'--workdir={tmp_path}/empty')
    assert 'is not a workdir' in err
  assert 'no run to resume' in refused(capsys, f'--workdir={tmp_path}/empty')
  assert not list((tmp_path / 'empty').iterdir())
  shutil.rmtree(trained / 'checkpoints')
  err = refused(capsys, '--mode=eval', f'--workdir={trained}')
  assert 'There is no checkpoint' in err
  (trained / 'classes.json').unlink()
  err = refused(capsys, '--mode=eval', f'--workdir={trained}')
  assert 'has no classes.json' in err
  (trained / 'config.json').write_text('{"seed": ')
  err = refused(capsys, '--mode=eval', f'--workdir={trained}')
  assert 'config.json is damaged' in err


def test_the_result_says_which_checkpoint_it_is_of(trained, capsys):
  before = json.loads((trained / 'eval.json').read_text())
  assert (before['checkpoint'], before['step']) == ('last', 4)
  for file in (trained / 'checkpoints' / '4' / 'state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  assert call('--mode=eval', f'--workdir={trained}') == 0
  found = json.loads((trained / 'eval.json').read_text())
  assert (found['checkpoint'], found['step']) == ('another than the last', 2)


@pytest.mark.slow
def test_full_disk_leaves_the_checkpoints_before_it(trained):
  """No file may grow beyond 16 kB: tables fit, checkpoints don't."""
  before = snapshot(trained / 'checkpoints')
  command = (
    CONFIG,
    QUIET,
    '--config.model.mlp_dim=48',
    '--config.duration=5 steps',
    f'--workdir={trained}',
  )
  process = start(
    *command,
    ulimit=32,
    JAX_ENABLE_COMPILATION_CACHE='0',  # it would keep half an entry
  )
  _, err = process.communicate()
  assert process.returncode == 2
  assert 'error: Could not save a checkpoint in' in err
  assert 'Traceback' not in err and err.count('error: ') == 1, err
  assert snapshot(trained / 'checkpoints').items() >= before.items()
  assert saved_steps(trained)[-1] == 4
  assert call(*command) == 0
  assert saved_steps(trained)[-1] == 5
  assert steps(trained) == [1, 2, 3, 4, 5]
