"""Several processes as one: really started, stopped and killed on this machine.

Two processes with two simulated devices each, over loopback, against one with
four. Which process is which, as flags and environments say, is judged without.
"""

import csv
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent import futures

import jax
import numpy as np
import pytest

from configs import digits_vit22b_ti
from vit22b_jax import errors, train
from vit22b_jax.runtime import checkpoint, distributed, links, sharding

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 120  # that processes may take
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
    SLURM | OPEN_MPI | {'OMPI_COMM_WORLD_SIZE': '1'},
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


def test_mpirun_within_a_slurm_job_is_open_mpi():
  job = distributed.find(environ=SLURM | OPEN_MPI)
  assert (job.source, job.num_processes, job.process_id) == ('Open MPI', 6, 4)


@pytest.mark.parametrize(
  ('node', 'local_id', 'share'),
  [(0, 3, [3]), (1, 3, [3]), (2, 1, [2, 3]), (3, 0, [0, 1, 2, 3])],
)
def test_nodes_may_have_different_numbers_of_tasks(node, local_id, share):
  more = {
    'SLURM_STEP_NUM_TASKS': '11',
    'SLURM_STEP_TASKS_PER_NODE': '4(x2),2,1',
    'SLURM_NODEID': f'{node}',
    'SLURM_LOCALID': f'{local_id}',
    'CUDA_VISIBLE_DEVICES': '0,1,2,3',
  }
  assert distributed.find(environ=SLURM | more).local_device_ids == share


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


# --- What one process meets and others do not -------------------------------


@pytest.fixture
def saved_once(tmp_path):
  """A manager with a checkpoint, and the abstract state to restore."""
  state = {'x': jax.numpy.arange(5.0)}
  manager = checkpoint.Manager(tmp_path, scores={})
  manager.save(1, state, data=None, meta={})
  manager.wait()
  yield manager, jax.eval_shape(lambda: state)
  manager.close()


def test_a_disk_that_fails_once_is_asked_again(saved_once, monkeypatch):
  manager, abstract = saved_once
  read, failures = manager._read, [OSError('stale file handle')]

  def flaky(*args):
    if failures:
      raise failures.pop()
    return read(*args)

  monkeypatch.setattr(manager, '_read', flaky)
  assert manager.restore(abstract).step == 1
  assert not (manager.workdir / 'checkpoints_damaged').exists()


def test_what_only_another_process_cannot_read_is_not_put_aside(
  saved_once, monkeypatch
):
  manager, abstract = saved_once
  monkeypatch.setattr(distributed, 'gather', lambda value: [value, 0, 1])
  with pytest.raises(errors.UserError, match=r'Processes \[2\] could not read'):
    manager.restore(abstract)
  assert (manager.workdir / 'checkpoints' / '1').exists()


def test_a_barrier_that_another_process_left_is_not_the_disks_fault(
  saved_once, monkeypatch
):
  """Orbax raises a TimeoutError, which is an OSError."""
  manager, _ = saved_once

  def wait():
    cause = jax.errors.JaxRuntimeError('UNAVAILABLE: connection reset')
    raise TimeoutError('Timed out while waiting for a barrier.') from cause

  with monkeypatch.context() as patch:
    patch.setattr(manager._manager, 'wait_until_finished', wait)
    with pytest.raises(TimeoutError) as found:
      manager.wait()
  assert links._looks_lost(found.value)
  assert not links._looks_lost(ConnectionError('connection refused'))


def test_a_configuration_of_one_process_alone_stops_all(monkeypatch):
  config = digits_vit22b_ti.get_config('tiny')
  train.check_alike(config)
  monkeypatch.setattr(distributed, 'gather', lambda value: [value, 1])
  with pytest.raises(errors.UserError, match=r'Processes \[1\] were started'):
    train.check_alike(config)


@pytest.mark.parametrize(
  ('code', 'restarts', 'again'),
  [(143, 0, 1), (4, 1, 1), (137, 0, 1), (4, 20, 0), (0, 0, 0)]
  + [(code, 0, 0) for code in (1, 2, 3)],
)
def test_the_slurm_recipe_requeues_what_resumes(
  code, restarts, again, tmp_path
):
  text = (ROOT / 'experiments/scaling/README.md').read_text()
  recipe = text.split('#!/bin/bash\n')[1].split('```')[0]
  for name, body in {'srun': f'exit {code}', 'scontrol': 'echo "$@"'}.items():
    (tmp_path / name).write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / name).chmod(0o755)
  done = subprocess.run(
    ['bash', '-c', recipe],
    env={
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'SLURM_JOB_ID': '77',
      'SLURM_RESTART_COUNT': f'{restarts}',
    },
    capture_output=True,
    text=True,
  )
  assert done.stdout == 'requeue 77\n' * again
  assert done.returncode == code


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


HOSTS = [
  '127.0.0.1',
  pytest.param(
    '::1',
    marks=pytest.mark.skipif(
      not socket.has_dualstack_ipv6(), reason='no IPv6 here'
    ),
  ),
]


@pytest.mark.parametrize('host', HOSTS)
def test_the_first_process_waits_for_all(host):
  port = free_port()
  with futures.ThreadPoolExecutor() as pool:
    first = pool.submit(links.await_all, port, 3, 10)
    with links.connect(host, port, 10) as somebody:
      somebody.sendall(b'GET / HTTP/1.1\r\n\r\n')
    others = [
      pool.submit(links.report_to, host, port, i, 3, 10) for i in (1, 2)
    ]
    for found in (first, *others):
      found.result()
  with pytest.raises(TimeoutError, match=r'processes \[1, 2\] did not come'):
    links.await_all(port, 3, 0.1)


@pytest.mark.parametrize(
  ('count', 'others', 'message'),
  [
    (2, [(1, 3)], 'Process 1 has --num_processes=3, and process 0 has 2'),
    (3, [(7, 3)], '--process_id=7: expected 1 to 2'),
    (3, [(1, 3), (1, 3)], 'Two processes have --process_id=1'),
  ],
)
def test_a_process_that_is_not_of_the_job_is_refused_at_once(
  count, others, message
):
  port = free_port()
  with futures.ThreadPoolExecutor() as pool:
    all_found = [
      pool.submit(links.await_all, port, count, 60),
      *(
        pool.submit(links.report_to, '127.0.0.1', port, *other, 60)
        for other in others
      ),
    ]
    for found in all_found:
      with pytest.raises(errors.UserError, match=message):
        found.result(timeout=30)


def test_a_process_that_is_started_anew_is_the_same(monkeypatch):
  port = free_port()
  with futures.ThreadPoolExecutor() as pool:
    first = pool.submit(links.await_all, port, 3, 30)
    with links.connect('127.0.0.1', port, 10) as ended:
      ended.sendall(b'1 3')
    others = [
      pool.submit(links.report_to, '127.0.0.1', port, i, 3, 30) for i in (1, 2)
    ]
    for found in (first, *others):
      found.result()


def test_a_host_that_nobody_knows_is_told(monkeypatch):
  monkeypatch.setattr(links, '_UNKNOWN_SECONDS', 0)

  def unknown(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

  monkeypatch.setattr(links.socket, 'create_connection', unknown)
  with pytest.raises(errors.UserError, match="unknown host 'nodee'"):
    distributed._meet('nodee:1', 60, distributed.Job('the flags', 2, 1))
  monkeypatch.setenv('VIT22B_JAX_START_SECONDS', '5m')
  with pytest.raises(errors.UserError, match="START_SECONDS='5m'"):
    distributed.start(distributed.Job('the flags', 2, 1, 'nodee:1'))


# Process INDEX of COUNT, without jax's own connections: what `links` does.
LINKED = """
import sys, threading, time
import jax
index, count, port = map(int, sys.argv[1:4])
jax.process_index, jax.process_count = lambda: index, lambda: count
jax.distributed.shutdown = lambda: None
from vit22b_jax.runtime import links
token = 'token'
if index == 0:
  links._links = links._First(links._serve(port, count), token)
else:
  links._links = links._Other(links.connect('127.0.0.1', port, 20), token)
links.expect(int(sys.argv[4]))
threading.Thread(target=links._links.listen, daemon=True).start()
end = time.monotonic() + 20
while len(links._links._peers) < (count - 1 if index == 0 else 1):
  assert time.monotonic() < end
  time.sleep(0.01)
print('linked', flush=True)
"""


def linked(folder, *endings, agreed=0):
  """Processes that are linked, and what each does then."""
  port = free_port()
  commands = [
    (sys.executable, '-c', LINKED + ending, i, len(endings), port, agreed)
    for i, ending in enumerate(endings)
  ]
  return port, Processes(folder, commands)


def test_links_bear_strangers_and_wait_for_the_slowest(tmp_path):
  port, run = linked(
    tmp_path,
    'time.sleep(4); links.finish(143)',
    'time.sleep(2); links.finish(143)',
    'links.finish(143)',
    agreed=143,
  )
  with run:
    run.wait_for('linked')
    for text in (b'GET /\r\n\r\n', b'[1]\n', b'{"token": "token"}\n', b''):
      with links.connect('127.0.0.1', port, 5) as stranger:
        stranger.sendall(text)
    time.sleep(1)
    assert [process.poll() for process in run.all] == [None] * 3
    assert run.codes() == [143] * 3, run.said(0) + run.said(1)
  assert 'Traceback' not in run.said(0)


def test_what_stops_all_is_said_once_after_a_slow_report(tmp_path):
  stop = "links._GRACE = 1.0; links.complain('stopped: x', 3)"
  with linked(tmp_path, f'time.sleep(3); {stop}', stop)[1] as run:
    assert run.codes() == [3, 3], run.said(0)
    assert (run.said(0) + run.said(1)).count('stopped: x') == 1


@pytest.mark.parametrize(
  ('how', 'codes'),
  [
    ("links.complain('error: x', 2)", [2, 2, 2]),
    ('links.give_up(ValueError("no connection, deadline"))', [1, 1, 1]),
    ('os.kill(os.getpid(), 9)', [links.LOST, -signal.SIGKILL, links.LOST]),
    ('links.exit_now(143)', [143, 143, 143]),
  ],
)
def test_the_end_of_one_process_ends_all_with_the_right_code(
  how, codes, tmp_path
):
  """An error of its own is no loss, from which a launcher may start again."""
  short = 'import os; links._GRACE = 1.0; '
  endings = ['links.finish(0)', f'time.sleep(1); {how}', 'time.sleep(60)']
  with linked(tmp_path, *(short + ending for ending in endings))[1] as run:
    assert run.codes() == codes, run.said(0)
    if codes[1] == 1:
      assert 'ValueError: no connection' in run.said(1)


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
  joined = [f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2']
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
  own = [x for x in run.said(1).splitlines() if not x.startswith('[Gloo]')]
  assert own == []  # the first process speaks for all
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
  assert 'SIGTERM: saving everything' in run.said(1)
  assert 'Stopped by SIGTERM; everything is saved' in run.said(0)
  step = saved(tmp_path / 'run')[-1]
  assert len(table(tmp_path / 'run')) == step < 80
  shutil.copytree(tmp_path / 'run', tmp_path / 'for_one')

  with two(tmp_path / 'killed', *command) as run:
    run.wait_for(f'Resuming from checkpoint {step} of 80')
    run.wait_for(f'step {step + 13}/80')
    run.all[0].kill()
    start = time.monotonic()
    assert run.codes() == [-signal.SIGKILL, links.LOST], run.said(1)
  assert time.monotonic() - start < links.SILENCE
  assert run.said(1).count('error: ') == 1
  assert 'error: Process 0 was killed, or its machine is gone' in run.said(1)
  assert 'the same command (in every process) resumes' in run.said(1)

  with two(tmp_path / 'again', *command) as run:
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
def test_what_all_processes_meet_is_said_once(tmp_path):
  wrong = '--config.data.name=folder:/nowhere'
  with two(tmp_path, *COMMAND, wrong, f'--workdir={tmp_path}/run') as run:
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
