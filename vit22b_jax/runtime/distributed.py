"""Several processes that train as one: who they are, and what unites them.

    found = distributed.find(coordinator, num_processes, process_id)
    distributed.start(found)           # before jax touches a device
    step = distributed.share(step)     # what the first process has, in all
    distributed.agree(ok)              # whether it is so in every process

    >>> job = find('10.0.0.1:8476', num_processes=2, process_id=1, environ={})
    >>> job.process_id, job.coordinator
    (1, '10.0.0.1:8476')

A Cloud TPU pod slice, SLURM and Open MPI say who is who, or three flags do. A
process on its own waits for nobody. What happens when one of several is lost is
the matter of `links`.
"""

import dataclasses
import glob
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from vit22b_jax import errors
from vit22b_jax.runtime import links, preemption

# Seconds to wait: for all processes to have come, for jax to miss one that
# hangs (`links` is sooner), for all to have left.
START_SECONDS = 300
HEARTBEAT_SECONDS = 60
_LEAVE_SECONDS = 60
_SEEN_SECONDS = 10  # that a network disk may take to show a new file

MODES = ('train', 'eval')  # that several processes can share

_METADATA = (
  'http://metadata.google.internal/computeMetadata/v1/instance/attributes/'
)


@dataclasses.dataclass(frozen=True)
class Job:
  """One process of several.

  Attributes:
    source: who says so, for messages.
    num_processes: how many there are.
    process_id: which one this is.
    coordinator: host:port of the first process; None: jax finds it.
    local_device_ids: GPUs of this machine that are this process's; None: all,
      or as jax finds it.
  """

  source: str
  num_processes: int | None = None
  process_id: int | None = None
  coordinator: str | None = None
  local_device_ids: list[int] | None = None


def find(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  mode: str = 'train',
  environ: Mapping[str, str] = os.environ,
) -> Job | None:
  """The job that this process belongs to; None for a process on its own.

  Args:
    coordinator: the flag, host:port of process 0.
    num_processes: the flag; a launcher's variables stand in for it.
    process_id: the flag, from 0 on; likewise.
    mode: of the command line; some are the work of one process.
    environ: environment variables.

  Raises:
    UserError: the flags are incomplete or don't fit together.
  """
  flags = (coordinator, num_processes, process_id)
  if mode not in MODES:
    if flags != (None,) * 3:
      raise errors.UserError(
        f'--mode={mode} is the work of one process: leave --coordinator, '
        f'--num_processes and --process_id out ({" and ".join(MODES)} take '
        'them).'
      )
    return None
  # mpirun within a SLURM job leaves the variables of both.
  by_mpi = 'OMPI_COMM_WORLD_SIZE' in environ
  launched = _open_mpi(environ) if by_mpi else _slurm(environ)
  if flags == (None,) * 3:
    return launched or _tpu(environ)
  if launched and coordinator and flags[1:] == (None, None):
    return dataclasses.replace(launched, coordinator=_address(coordinator))
  if None in flags:
    names = ('--coordinator', '--num_processes', '--process_id')
    missing = [n for n, v in zip(names, flags, strict=True) if v is None]
    raise errors.UserError(
      f'{" and ".join(missing)} missing: several processes need all of '
      '--coordinator=HOST:PORT (of process 0), --num_processes=N and '
      '--process_id=0 to N-1; a process on its own needs none of them.'
    )
  if num_processes < 1:
    raise errors.UserError(f'--num_processes={num_processes}: at least 1.')
  if not 0 <= process_id < num_processes:
    raise errors.UserError(
      f'--process_id={process_id} with --num_processes={num_processes}: '
      f'expected 0 to {num_processes - 1}, another one in each process.'
    )
  if num_processes == 1:
    return None
  return Job('the flags', num_processes, process_id, _address(coordinator))


def _address(coordinator: str) -> str:
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise errors.UserError(
      f'--coordinator={coordinator}: expected HOST:PORT of the machine of '
      'process 0, as in --coordinator=10.0.0.1:8476; any free port does.'
    )
  return coordinator


def _slurm(environ: Mapping[str, str]) -> Job | None:
  """A task of an srun step with several; the batch script itself is none."""
  needed = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_LOCALID')
  count = environ.get('SLURM_STEP_NUM_TASKS') or environ.get('SLURM_NTASKS')
  if not all(name in environ for name in needed) or int(count or 1) < 2:
    return None
  here = _tasks_per_node(environ.get('SLURM_STEP_TASKS_PER_NODE', '1'))
  node = int(environ.get('SLURM_NODEID', 0))
  return Job(
    'SLURM',
    int(count),
    int(environ['SLURM_PROCID']),
    local_device_ids=_gpus(
      environ, int(environ['SLURM_LOCALID']), here[min(node, len(here) - 1)]
    ),
  )


def _tasks_per_node(text: str) -> list[int]:
  """[4, 4, 3] for '4(x2),3': one number for each node, or for some alike."""
  found = re.findall(r'(\d+)(?:\(x(\d+)\))?', text)
  return [int(n) for n, times in found for _ in range(int(times or 1))] or [1]


def _open_mpi(environ: Mapping[str, str]) -> Job | None:
  if int(environ['OMPI_COMM_WORLD_SIZE']) < 2:
    return None
  return Job(
    'Open MPI',
    int(environ['OMPI_COMM_WORLD_SIZE']),
    int(environ['OMPI_COMM_WORLD_RANK']),
    local_device_ids=_gpus(
      environ,
      int(environ['OMPI_COMM_WORLD_LOCAL_RANK']),
      int(environ['OMPI_COMM_WORLD_LOCAL_SIZE']),
    ),
  )


def _gpus(
  environ: Mapping[str, str], local_id: int, local_count: int
) -> list[int] | None:
  """This process's share of the GPUs that it sees.

  jax would give it the one with its number on the machine: too few with one
  process a node, and one that isn't there where SLURM binds GPUs to tasks.
  """
  visible = environ.get('CUDA_VISIBLE_DEVICES')
  seen = (
    glob.glob('/dev/nvidia[0-9]*')
    if visible is None
    else ([x for x in visible.split(',') if x])
  )
  if not seen:
    return None
  if len(seen) < local_count:  # bound to this task alone
    return list(range(len(seen)))
  share = len(seen) // local_count
  return list(range(local_id * share, (local_id + 1) * share))


def _tpu(environ: Mapping[str, str]) -> Job | None:
  """A worker of a TPU pod slice; jax finds out the rest.

  Only a machine with TPU chips is asked, for seconds at most.
  """
  platforms = environ.get('JAX_PLATFORMS') or 'tpu'
  if 'tpu' not in platforms or not _has_tpu():
    return None
  job = Job('Cloud TPU')
  hosts = environ.get('TPU_PROCESS_ADDRESSES') or environ.get(
    'TPU_WORKER_HOSTNAMES', ''
  )
  if int(environ.get('MEGASCALE_NUM_SLICES') or 1) > 1 or ',' in hosts:
    return job
  if hosts or 'TPU_SKIP_MDS_QUERY' in environ:
    return None
  slices = "MEGASCALE_NUM_SLICES: '"
  alone = f"{slices}1'"
  several = slices in (text := _metadata('tpu-env')) and alone not in text
  return (
    job if several or ',' in _metadata('worker-network-endpoints') else None
  )


def _has_tpu() -> bool:
  """Whether a Google PCI device and an accelerator's node are here."""
  nodes = glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*')
  if not nodes:
    return False
  for vendor in glob.glob('/sys/bus/pci/devices/*/vendor'):
    with open(vendor) as file:
      if file.read().strip() == '0x1ae0':
        return True
  return False


def _metadata(key: str) -> str:
  """An attribute of a Google Cloud machine; '' where there's none."""
  request = urllib.request.Request(
    _METADATA + key, headers={'Metadata-Flavor': 'Google'}
  )
  try:
    with urllib.request.urlopen(request, timeout=2) as answer:
      return answer.read().decode()
  except (OSError, urllib.error.URLError):
    return ''


def start(job: Job | None) -> None:
  """Joins the processes of a job; does nothing for a process on its own.

  Raises:
    UserError: the others, or the first of them, don't answer, or were started
      with other flags; VIT22B_JAX_START_SECONDS isn't a number.
  """
  if job is None:
    return
  where = job.coordinator
  if job.source == 'Open MPI' and not where:
    where = _open_mpi_coordinator()
  preemption.Watcher.exit = staticmethod(links.exit_now)
  # Its handler of SIGTERM would take the place of `preemption`'s.
  jax.config.update('jax_enable_preemption_service', False)
  seconds = _start_seconds()
  if where:
    _meet(where, seconds, job)
  try:
    jax.distributed.initialize(
      where,
      job.num_processes,
      job.process_id,
      job.local_device_ids,
      cluster_detection_method='deactivate' if where else None,
      initialization_timeout=seconds,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_LEAVE_SECONDS,
    )
  except (RuntimeError, ValueError, OSError) as error:
    raise _unreachable(job, where, seconds, error) from error
  try:
    links.open_all(where and where.rpartition(':')[0].strip('[]'), share)
  except OSError as error:
    raise errors.UserError(
      f'Process {jax.process_index()} could not connect to a port that process '
      f'0 chose ({error}): let the machines of a job reach each other, or name '
      'the first in a way that all know, with --coordinator=HOST:PORT.'
    ) from error


def _start_seconds() -> int:
  text = os.environ.get('VIT22B_JAX_START_SECONDS', str(START_SECONDS))
  if not text.isdecimal() or int(text) < 1:
    raise errors.UserError(
      f'VIT22B_JAX_START_SECONDS={text!r}: expected a number of seconds, as in '
      f'VIT22B_JAX_START_SECONDS={START_SECONDS}.'
    )
  return int(text)


def _open_mpi_coordinator() -> str | None:
  """None where jax knows it: Open MPI 5 no longer tells its launcher's place.

  Raises:
    UserError: processes on several machines.
  """
  environ = os.environ
  if 'OMPI_MCA_orte_hnp_uri' in environ:
    return None
  if environ['OMPI_COMM_WORLD_SIZE'] == environ['OMPI_COMM_WORLD_LOCAL_SIZE']:
    names = (environ.get('PMIX_NAMESPACE'), str(os.getppid()))
    number = zlib.crc32((names[0] or names[1]).encode())
    return f'127.0.0.1:{40000 + number % 20000}'
  raise errors.UserError(
    'This Open MPI does not say where its first process is: add '
    '--coordinator=HOST:PORT, the machine of rank 0 and a free port there.'
  )


def _meet(where: str, seconds: int, job: Job) -> None:
  """Waits until all have come; jax would end those who wait, and badly."""
  host, _, port = where.rpartition(':')
  try:
    if job.process_id == 0:
      links.await_all(int(port), job.num_processes, seconds)
    else:
      links.report_to(
        host.strip('[]'), int(port), job.process_id, job.num_processes, seconds
      )
  except socket.gaierror as error:
    raise errors.UserError(
      f'--coordinator={where}: unknown host {host!r} ({error.strerror}). Is '
      'its name spelt right, and known on this machine? An address does too.'
    ) from error
  except OSError as error:
    raise _unreachable(job, where, seconds, error) from error


def _unreachable(
  job: Job, where: str | None, seconds: int, error: Exception
) -> errors.UserError:
  me = 'Process' if job.process_id is None else f'Process {job.process_id}'
  count = job.num_processes or 'several'
  if job.process_id == 0:
    met = f'did not meet the others at {where} within {seconds} s'
    cure = (
      'Start all processes at about the same time, with the same '
      '--coordinator and --num_processes; is the port free on this machine?'
    )
  else:
    met = f'could not reach process 0 at {where} within {seconds} s'
    cure = (
      'Is process 0 running on that machine, and does a firewall let this one '
      'reach the port?'
    )
  text = str(error).strip().split('\n')[0][:200]
  return errors.UserError(
    f'{me} of {count} ({job.source}) {met} ({text}). {cure}'
  )


# --- Together ----------------------------------------------------------------


def share(value: Any) -> Any:
  """What the first process has, in every process; a JSON value."""
  if jax.process_count() == 1:
    return value
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  # A power of two, so that few programs are compiled.
  padded = np.zeros(max(64, 1 << (length - 1).bit_length()), np.uint8)
  if jax.process_index() == 0:
    padded[:length] = data
  # As int32: sums of bytes must not wrap on any backend.
  whole = multihost_utils.broadcast_one_to_all(padded.astype(np.int32))
  return json.loads(whole.astype(np.uint8)[:length].tobytes())


def gather(value: int) -> list[int]:
  """Each process's number, by process, in every process."""
  if jax.process_count() == 1:
    return [value]
  return multihost_utils.process_allgather(np.int32(value)).tolist()


def agree(condition: bool) -> bool:
  """Whether the condition holds in every process."""
  return all(gather(int(condition)))


def first(function: Callable[[], Any]) -> Any:
  """Runs a function in the first process, then in the others.

  They find on disk what it left there (a prepared data set, decoded images)
  and don't all make it at once.

  Raises:
    UserError: in every process, if it was raised in the first.
  """
  if jax.process_count() == 1:
    return function()
  result, problem = None, None
  if jax.process_index() == 0:
    try:
      result = function()
    except errors.UserError as error:
      problem = str(error)
  problem = share(problem)
  if problem:
    raise errors.UserError(problem)
  return result if jax.process_index() == 0 else function()


class Votes:
  """Numbers that processes cast with a step, and the largest of them.

  What a process decides on its own (a signal came, a time is up) must not be
  acted on before all know: their steps would no longer meet. So each step's
  scalars get one more entry, the largest vote, which is read with them.

  Args:
    mesh: of the step.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    spec = jax.sharding.PartitionSpec
    self._shape = (mesh.size,)
    self._split = jax.sharding.NamedSharding(mesh, spec(mesh.axis_names))
    self._count = jax.jit(
      lambda scalars, votes: jnp.append(scalars, votes.max()),
      out_shardings=jax.sharding.NamedSharding(mesh, spec()),
    )

  def cast(self, scalars: Float[Array, 'M'], vote: int) -> Float[Array, 'M+1']:
    """The scalars of a step, and the largest vote; nothing is waited for."""
    votes = jax.make_array_from_callback(
      self._shape,
      self._split,
      lambda index: np.full(self._shape, vote, np.float32)[index],
    )
    return self._count(scalars, votes)


def check_shared(path: Any, write: Callable[[str], None]) -> None:
  """Judges whether all processes see the workdir that the first one writes.

  Args:
    path: the workdir.
    write: writes an empty file of a name into it, in the first process.

  Raises:
    UserError: in every process, naming those that don't.
  """
  if jax.process_count() == 1:
    return
  name = share(f'.seen_by_all_{os.getpid()}_{socket.gethostname()}')
  write(name)
  share(0)  # it is written by now
  end = time.monotonic() + _SEEN_SECONDS
  while not (path / name).exists() and time.monotonic() < end:
    time.sleep(0.1)
  seen = gather(int((path / name).exists()))
  if jax.process_index() == 0:
    (path / name).unlink(missing_ok=True)
  blind = [i for i, there in enumerate(seen) if not there]
  if blind:
    place = share(os.fspath(path))
    raise errors.UserError(
      f'Processes {blind} do not see the files that process 0 writes into '
      f'{place}: with several processes --workdir must be on a disk that all '
      'machines share, or gs://.'
    )
