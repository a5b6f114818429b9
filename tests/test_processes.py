"""Several processes as one: really started, stopped and killed on this machine.

Two processes with two simulated devices each, over loopback, against one with
four. Which process is which, as flags and environments say, is judged without.
"""

import contextlib
import csv
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from configs import digits_vit22b_ti
from vit22b_jax import distributed, errors, links, sharding, train

ROOT = pathlib.Path(__file__).parent.parent
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


# --- Who is who ------------------------------------------------------------

SLURM = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_NODELIST': 'node[01-02]',
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
}
OPEN_MPI = {
  'OMPI_COMM_WORLD_SIZE': '6',
  'OMPI_COMM_WORLD_RANK': '4',
  'OMPI_COMM_WORLD_LOCAL_SIZE': '3',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
}


@pytest.mark.parametrize(
  'environ',
  [
    {},
    SLURM | {'SLURM_STEP_NUM_TASKS': '1'},
    {'SLURM_JOB_ID': '77', 'SLURM_NTASKS': '4'},  # the batch script itself
    OPEN_MPI | {'OMPI_COMM_WORLD_SIZE': '1'},
  ],
)
def test_a_process_on_its_own_asks_nobody(environ, monkeypatch):
  def asked(*_, **__):
    pytest.fail('asked the network')

  monkeypatch.setattr(distributed.urllib.request, 'urlopen', asked)
  assert distributed.find(environ=environ) is None


@pytest.mark.parametrize(
  ('gpus', 'share'),
  [(None, None), ('0,1', [1]), ('0,1,2,3', [2, 3]), ('2', [0])],
)
def test_launchers_tell_who_is_who(gpus, share, monkeypatch):
  """GPUs are shared out evenly, unless each task sees its own alone."""
  monkeypatch.setattr(distributed.glob, 'glob', lambda _: [])
  more = {} if gpus is None else {'CUDA_VISIBLE_DEVICES': gpus}
  job = distributed.find(environ=SLURM | more)
  assert (job.num_processes, job.process_id) == (4, 3)
  assert job.local_device_ids == share and job.coordinator is None
  job = distributed.find('[::1]:123', environ=OPEN_MPI)
  assert (job.num_processes, job.process_id) == (6, 4)
  assert job.coordinator == '[::1]:123'


def test_one_task_on_each_node_has_all_its_gpus():
  more = {
    'SLURM_STEP_TASKS_PER_NODE': '1(x4)',
    'SLURM_LOCALID': '0',
    'CUDA_VISIBLE_DEVICES': '0,1,2,3',
  }
  assert distributed.find(environ=SLURM | more).local_device_ids == [0, 1, 2, 3]


@pytest.mark.parametrize(
  ('hostnames', 'metadata', 'several'),
  [
    ('a', {}, False),
    ('a,b', {}, True),
    ('', {'worker-network-endpoints': 'x:0:10.0.0.2'}, False),
    ('', {'worker-network-endpoints': 'x:0:10.0.0.2,x:1:10.0.0.3'}, True),
    ('', {'tpu-env': "MEGASCALE_NUM_SLICES: '2'\n"}, True),
    ('', {'tpu-env': "MEGASCALE_NUM_SLICES: '1'\n"}, False),
  ],
)
def test_tpu_pod_slices(hostnames, metadata, several, monkeypatch):
  monkeypatch.setattr(distributed, '_has_tpu', lambda: True)
  monkeypatch.setattr(distributed, '_metadata', lambda k: metadata.get(k, ''))
  job = distributed.find(environ={'TPU_WORKER_HOSTNAMES': hostnames})
  assert (job is not None) == several
  assert distributed.find(environ={'JAX_PLATFORMS': 'cpu'}) is None


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
    distributed.find(*flags, environ={})


def test_some_modes_are_the_work_of_one_process():
  with pytest.raises(errors.UserError, match='work of one process'):
    distributed.find('h:1', 2, 0, mode='predict', environ={})
  assert distributed.find(mode='predict', environ=SLURM) is None
  assert distributed.find('h:1', 1, 0, environ={}) is None


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


def test_the_first_process_waits_for_all():
  port = free_port()
  others = [
    threading.Thread(target=links.report_to, args=('127.0.0.1', port, i, 10))
    for i in (1, 2)
  ]
  for other in others:
    other.start()
  links.await_all(port, 3, 10)
  for other in others:
    other.join()
  with pytest.raises(TimeoutError, match=r'processes \[1, 2\] did not come'):
    links.await_all(port, 3, 0.1)


class Processes:
  """Two processes of main.py, with two devices each."""

  def __init__(self, folder, *arguments):
    folder.mkdir(parents=True, exist_ok=True)
    self.files = [folder / f'process_{i}.txt' for i in range(2)]
    devices = '--xla_force_host_platform_device_count=2'
    joined = [f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2']
    self.all = []
    for i, file in enumerate(self.files):
      mine = [*joined, f'--process_id={i}']
      with file.open('w') as out:
        self.all.append(
          subprocess.Popen(
            [sys.executable, ROOT / 'main.py', *mine, *map(str, arguments)],
            env={**os.environ, 'XLA_FLAGS': devices},
            stdout=out,
            stderr=subprocess.STDOUT,
          )
        )

  def said(self, i):
    return self.files[i].read_text()

  def wait_for(self, text):
    """Until process 0 says it."""
    while text not in self.said(0):
      assert self.all[0].poll() is None, self.said(0)
      time.sleep(0.02)

  def codes(self):
    """Exit codes of all."""
    try:
      return [process.wait(timeout=100) for process in self.all]
    finally:
      for process in self.all:
        with contextlib.suppress(ProcessLookupError):
          process.kill()


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
  run = Processes(folder / 'out', *COMMAND, f'--workdir={folder}/two')
  assert run.codes() == [0, 0], run.said(0)
  assert 'Result on the test part (359 images' in run.said(0)
  own = [x for x in run.said(1).splitlines() if not x.startswith('[Gloo]')]
  assert own == []  # the first process speaks for all
  return folder


@pytest.mark.slow
def test_two_processes_compute_what_one_does(whole):
  one, two = table(whole / 'one'), table(whole / 'two')
  np.testing.assert_allclose(two[:5], one[:5], rtol=1e-6)
  np.testing.assert_allclose(two, one, rtol=1e-3)
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
  run = Processes(tmp_path / 'signalled', *command)
  run.wait_for('step 3/80')
  run.all[1].send_signal(signal.SIGTERM)
  assert run.codes() == [143, 143], run.said(0)
  assert 'SIGTERM: saving everything' in run.said(1)
  assert 'Stopped by SIGTERM; everything is saved' in run.said(0)
  step = saved(tmp_path / 'run')[-1]
  assert len(table(tmp_path / 'run')) == step < 80
  shutil.copytree(tmp_path / 'run', tmp_path / 'for_one')

  run = Processes(tmp_path / 'killed', *command)
  run.wait_for(f'Resuming from checkpoint {step} of 80')
  run.wait_for(f'step {step + 13}/80')
  run.all[0].kill()
  start = time.monotonic()
  assert run.codes() == [-signal.SIGKILL, links.LOST], run.said(1)
  assert time.monotonic() - start < links.SILENCE
  assert run.said(1).count('error: ') == 1
  assert 'error: Process 0 was killed, or its machine is gone' in run.said(1)
  assert 'the same command (in every process) resumes' in run.said(1)

  run = Processes(tmp_path / 'again', *command)
  assert run.codes() == [0, 0], run.said(0)
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
  run = Processes(
    tmp_path / 'eval', '--mode=eval', f'--workdir={tmp_path}/for_one'
  )
  assert run.codes() == [0, 0], run.said(0)
  found = json.loads((tmp_path / 'for_one' / 'eval.json').read_text())
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    same = value if isinstance(value, str) else pytest.approx(value, rel=1e-6)
    assert found[name] == same


@pytest.mark.slow
def test_what_all_processes_meet_is_said_once(tmp_path):
  run = Processes(
    tmp_path,
    *COMMAND,
    '--config.data.name=folder:/nowhere',
    f'--workdir={tmp_path}/run',
  )
  assert run.codes() == [2, 2]
  assert "'/nowhere' does not exist" in run.said(0)
  assert (run.said(0) + run.said(1)).count('error: ') == 1


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_is_waited_for_a_while(tmp_path):
  command = [sys.executable, ROOT / 'main.py', *COMMAND, '--num_processes=2']
  done = subprocess.run(
    [*command, '--process_id=1', f'--coordinator=127.0.0.1:{free_port()}'],
    cwd=tmp_path,
    env={**os.environ, 'VIT22B_JAX_START_SECONDS': '2'},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2
  assert 'error: Process 1 of 2 (the flags) could not reach' in done.stderr
  assert 'Traceback' not in done.stderr
