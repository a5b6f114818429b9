"""Several processes as one: really started, stopped and killed on this machine.

Two processes with two simulated devices each, over loopback, against one with
four. When jax is asked to start several is judged without.
"""

import contextlib
import csv
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import digits_vit22b_ti
from vit22b_jax import errors, train
from vit22b_jax.modes import setup
from vit22b_jax.runtime import checkpoint, distributed, sharding

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 300  # that processes may take
HEARTBEAT = 10
# Of jax, on losing a process: the heartbeat's words, or the exchange's if it
# notices first.
GONE = ('another task died', 'Connection reset by peer')
SETTINGS = {
  'duration': '80 steps',
  'log.every': '1 step',
  'log.tensorboard': False,
  'eval.every': '40 steps',
  'checkpoint.every': '10 steps',
}
COMMAND = (
  f'--config={ROOT}/configs/digits_vit22b_ti.py:tiny',
  *(f'--config.{key}={value}' for key, value in SETTINGS.items()),
)


# --- Whether there are several ---------------------------------------------

STEP = {'SLURM_JOB_ID': '77', 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '3'}


@pytest.fixture
def set_environ(monkeypatch):
  """Sets what a launcher would, and nothing else of the kind."""
  for name in ('JAX_PLATFORMS', 'OMPI_COMM_WORLD_SIZE', 'SLURM_STEP_NUM_TASKS'):
    monkeypatch.delenv(name, raising=False)

  def set_all(environ):
    for name, value in environ.items():
      monkeypatch.setenv(name, value)

  return set_all


@pytest.fixture
def calls(monkeypatch, set_environ):
  """Records what jax.distributed.initialize would be called with."""
  found = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args, **kw: found.append((args, kw))
  )
  monkeypatch.setattr(distributed.host, 'has_tpu', lambda: False)
  return found


@pytest.mark.parametrize(
  ('environ', 'several'),
  [
    ({}, False),
    (STEP, True),
    (STEP | {'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'SLURM_JOB_ID': '77', 'SLURM_NTASKS': '4'}, False),  # the batch script
    ({'OMPI_COMM_WORLD_SIZE': '6'}, True),
    (STEP | {'OMPI_COMM_WORLD_SIZE': '1'}, False),
  ],
)
def test_jax_is_asked_where_a_launcher_started_several(
  environ, several, calls, set_environ
):
  set_environ(environ)
  distributed.initialize()
  assert len(calls) == several
  alone = contextlib.nullcontext()
  if several:
    alone = pytest.raises(errors.UserError, match='launcher started')
  with alone:
    distributed.initialize(mode='predict')
  assert len(calls) == several


def test_flags_are_all_that_counts(calls, set_environ):
  set_environ(STEP)
  distributed.initialize('[::1]:123', 2, 1, heartbeat_seconds=7)
  args, more = calls.pop()
  assert args == ('[::1]:123', 2, 1)
  assert more['heartbeat_timeout_seconds'] == 7
  assert more['cluster_detection_method'] == 'deactivate'
  distributed.initialize('h:1', 1, 0)
  assert not calls


def test_machines_with_a_tpu_are_jaxs_to_judge(calls, monkeypatch):
  monkeypatch.setattr(distributed.host, 'has_tpu', lambda: True)
  distributed.initialize()
  assert calls.pop()
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  distributed.initialize()
  assert not calls


def test_a_launcher_that_does_not_name_process_0(monkeypatch, set_environ):
  """Open MPI 5 has no OMPI_MCA_orte_hnp_uri."""

  def initialize(*_, **__):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  set_environ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'})
  with pytest.raises(errors.UserError, match='OMPI_COMM_WORLD_RANK'):
    distributed.initialize()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('h:1', 2, None), '--process_id missing'),
    ((None, 2, 0), '--coordinator missing'),
    (('h:1', None, None), '--num_processes and --process_id missing'),
    (('h:1', 2, 2), 'expected 0 to 1'),
    (('h:1', 2, -1), 'expected 0 to 1'),
    (('h:1', 0, 0), 'at least 1'),
    (('h', 2, 0), 'expected HOST:PORT'),
    (('h:99999', 2, 0), 'expected HOST:PORT'),
  ],
)
def test_flags_that_do_not_fit(flags, message):
  with pytest.raises(errors.UserError, match=message):
    distributed.initialize(*flags)


def test_some_modes_take_one_process():
  with pytest.raises(errors.UserError, match='takes one process: leave'):
    distributed.initialize('h:1', 2, 0, mode='predict')


# --- What one process meets and others do not -------------------------------


def test_a_barrier_that_another_process_left_is_not_the_disks_fault(
  tmp_path, monkeypatch
):
  """Orbax raises a TimeoutError, which is an OSError."""
  manager = checkpoint.Manager(tmp_path, scores={})

  def wait():
    cause = jax.errors.JaxRuntimeError('UNAVAILABLE: connection reset')
    raise TimeoutError('Timed out while waiting for a barrier.') from cause

  with monkeypatch.context() as patch:
    patch.setattr(manager._manager, 'wait_until_finished', wait)
    with pytest.raises(TimeoutError):
      manager.wait()
  manager.close()


def test_a_checkpoint_that_one_process_cannot_read_is_damaged_for_all(
  tmp_path, monkeypatch
):
  state = {'x': jax.numpy.arange(5.0)}
  manager = checkpoint.Manager(tmp_path, scores={})
  manager.save(1, state, meta={})
  manager.wait()
  monkeypatch.setattr(distributed, 'gather', lambda value: [value, 1])
  with pytest.raises(errors.UserError, match='None of the checkpoints'):
    manager.restore(jax.eval_shape(lambda: state))
  manager.close()


def test_a_configuration_of_one_process_alone_stops_all(monkeypatch):
  config = digits_vit22b_ti.get_config('tiny')
  setup.validate_same_config(config)
  monkeypatch.setattr(distributed, 'gather', lambda value: [value, 1])
  with pytest.raises(errors.UserError, match=r'Processes \[1\] were started'):
    setup.validate_same_config(config)


@pytest.mark.parametrize('mark', ['train', 'train (read)'])
def test_images_of_one_process_alone_stop_all(monkeypatch, mark):
  config = digits_vit22b_ti.get_config('tiny')

  def broadcast(value):
    assert value['train (read)'] == '1294'
    return value | {mark: '7 ff'}

  monkeypatch.setattr(distributed, 'broadcast_json', broadcast)
  monkeypatch.setattr(distributed, 'gather', lambda value: [0, value])
  message = rf'(?s)Processes \[1\] .*{re.escape(mark)}: 7 images'
  with pytest.raises(errors.UserError, match=message):
    setup.load_data(config)


def test_memory_that_ran_out_is_explained_whatever_the_backend_calls_it():
  for words in (
    'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.',
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory',
    'RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB',
  ):
    found = distributed.explained(jax.errors.JaxRuntimeError(words))
    assert isinstance(found, errors.UserError)
    assert 'eval.batch_size' in str(found) and words in str(found)
  other = jax.errors.JaxRuntimeError('INTERNAL: RET_CHECK failure')
  full = OSError('RESOURCE_EXHAUSTED')
  assert distributed.explained(other) is other
  assert distributed.explained(full) is full


# --- Really started --------------------------------------------------------


def free_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def one_process(workdir):
  """The run in this process, on four devices."""
  config = digits_vit22b_ti.get_config('tiny')
  config.update_from_flattened_dict(SETTINGS)
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  assert train.run(config, workdir, mesh) == 0


class Processes:
  """Processes that are killed at the latest when this is left."""

  def __init__(self, folder, commands, **environ):
    folder.mkdir(parents=True, exist_ok=True)
    self.files = [folder / f'process_{i}.txt' for i in range(len(commands))]
    self.all = []
    for command, file in zip(commands, self.files, strict=True):
      with file.open('w') as out:
        self.all.append(
          subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env=os.environ | environ,
            stdout=out,
            stderr=subprocess.STDOUT,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.all:
      process.kill()
      process.wait()

  def said(self, i):
    return self.files[i].read_text()

  def wait_for(self, text):
    """Until process 0 says it."""
    end = time.monotonic() + SECONDS
    while text not in self.said(0):
      assert self.all[0].poll() is None, self.said(0)
      assert time.monotonic() < end, self.said(0)
      time.sleep(0.02)

  def codes(self):
    """Exit codes of all, once they have ended."""
    end = time.monotonic() + SECONDS
    return [
      process.wait(timeout=max(end - time.monotonic(), 0.01))
      for process in self.all
    ]


def two(folder, *arguments):
  """Two processes of main.py, with two devices each."""
  joined = [
    f'--coordinator=127.0.0.1:{free_port()}',
    '--num_processes=2',
    f'--heartbeat_seconds={HEARTBEAT}',
  ]
  return Processes(
    folder,
    [
      (sys.executable, 'main.py', *joined, f'--process_id={i}', *arguments)
      for i in range(2)
    ],
    XLA_FLAGS='--xla_force_host_platform_device_count=2',
  )


def table(workdir):
  with (workdir / 'diagnostics.csv').open() as file:
    return np.array([row[:2] for row in csv.reader(file)][1:], float)


def saved(workdir):
  found = (workdir / 'checkpoints').iterdir()
  return sorted(int(path.name) for path in found if path.name.isdigit())


def checksums(workdir):
  """Of every array of the last checkpoint."""
  last = workdir / 'checkpoints' / str(saved(workdir)[-1])
  return json.loads((last / 'meta' / 'metadata').read_text())['checksums']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of one process and one of two, which nothing interrupted."""
  folder = tmp_path_factory.mktemp('whole')
  one_process(folder / 'one')
  with two(folder / 'out', *COMMAND, f'--workdir={folder}/two') as run:
    assert run.codes() == [0, 0], run.said(0)
  assert 'Result on the test part (359 images' in run.said(0)
  # XLA speaks where CUDA is installed without a GPU, and Gloo piece by piece
  # from a thread of each device, so that its lines mix.
  own = re.sub(
    '(WARNING: All log messages before absl|I0000).*', '', run.said(1)
  )
  own = re.sub(r'\[Gloo\] Rank|is connected to|peer ranks\.', '', own)
  own = re.sub(r'Expected number of connected peer ranks is :|\d|\s', '', own)
  assert not own  # the first process speaks for all
  return folder


@pytest.mark.slow
def test_two_processes_compute_what_one_does(whole):
  alone, both = table(whole / 'one'), table(whole / 'two')
  np.testing.assert_allclose(both[:5], alone[:5], rtol=1e-6)
  np.testing.assert_allclose(both, alone, rtol=1e-3)
  found = [
    json.loads((whole / name / 'eval.json').read_text())
    for name in ('one', 'two')
  ]
  assert found[0]['num_examples'] == found[1]['num_examples'] == 359


@pytest.mark.slow
def test_a_signal_stops_all_and_a_kill_too_and_the_run_ends_alike(
  whole, tmp_path, capsys
):
  command = (*COMMAND, f'--workdir={tmp_path}/run')
  with two(tmp_path / 'signalled', *command) as run:
    run.wait_for('step 3/80')
    run.all[1].send_signal(signal.SIGTERM)
    assert run.codes() == [143, 143], run.said(0)
  assert 'Stopped by SIGTERM; everything is saved' in run.said(0)
  step = saved(tmp_path / 'run')[-1]
  assert len(table(tmp_path / 'run')) == step < 80
  shutil.copytree(tmp_path / 'run', tmp_path / 'for_one')

  for lost in (1, 0):
    newest = saved(tmp_path / 'run')[-1]
    with two(tmp_path / f'killed_{lost}', *command) as run:
      run.wait_for(f'Resuming from checkpoint {newest} of 80')
      run.wait_for(f'step {newest + 13}/80')
      run.all[lost].kill()
      start = time.monotonic()
      codes = run.codes()
    assert codes[lost] == -signal.SIGKILL and codes[1 - lost] != 0
    assert time.monotonic() - start < 2 * HEARTBEAT, run.said(1 - lost)
    assert any(words in run.said(1 - lost) for words in GONE)

  with two(tmp_path / 'again', *command) as run:
    assert run.codes() == [0, 0], run.said(0)
  assert not (tmp_path / 'run' / 'checkpoints_damaged').exists()
  for name in ('diagnostics.csv', 'eval.json'):
    expected = (whole / 'two' / name).read_bytes()
    assert (tmp_path / 'run' / name).read_bytes() == expected
  assert checksums(tmp_path / 'run') == checksums(whole / 'two')

  # One process takes over, and two look at what it made.
  one_process(tmp_path / 'for_one')
  assert f'Resuming from checkpoint {step} of 80' in capsys.readouterr().out
  np.testing.assert_allclose(
    table(tmp_path / 'for_one'), table(whole / 'two'), rtol=1e-3
  )
  expected = json.loads((tmp_path / 'for_one' / 'eval.json').read_text())
  evaluated = two(
    tmp_path / 'eval', '--mode=eval', f'--workdir={tmp_path}/for_one'
  )
  with evaluated as run:
    assert run.codes() == [0, 0], run.said(0)
  found = json.loads((tmp_path / 'for_one' / 'eval.json').read_text())
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    same = value if isinstance(value, str) else pytest.approx(value, rel=1e-6)
    assert found[name] == same


@pytest.mark.slow
def test_a_mistake_that_all_make_ends_all_with_its_code(tmp_path):
  wrong = '--config.data.name=folder:/nowhere'
  with two(tmp_path, *COMMAND, wrong, f'--workdir={tmp_path}/run') as run:
    assert run.codes() == [2, 2], run.said(0) + run.said(1)
  for i in range(2):
    assert "no folder '/nowhere'" in run.said(i)
    assert 'Traceback' not in run.said(i)
  assert not (tmp_path / 'run').exists()


ALONE = """
import sys
from jax.experimental import multihost_utils
from vit22b_jax import errors
from vit22b_jax.runtime import distributed
port, index = map(int, sys.argv[1:])
distributed.initialize(f'127.0.0.1:{port}', 2, index, heartbeat_seconds=5)
assert distributed.broadcast_json({'of': index}) == {'of': 0}
assert distributed.gather(index) == [0, 1]
if index:
  distributed.exit_on_error(errors.UserError('of one'))
multihost_utils.sync_global_devices('never')
"""


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others(tmp_path):
  port = free_port()
  commands = [(sys.executable, '-c', ALONE, port, i) for i in range(2)]
  with Processes(tmp_path, commands) as run:
    codes = run.codes()
  assert codes[1] == 2 and codes[0] != 0
  assert 'error: of one' in run.said(1) and 'Traceback' not in run.said(1)
