"""Starts several processes that train as one, over `jax.distributed`.

    distributed.initialize(coordinator, num_processes, process_id)
    step = distributed.broadcast_json(step)
    data = distributed.run_on_process_zero_first(load)

Call `initialize` before jax touches a device. jax finds the processes on TPU
pods, under SLURM and under Open MPI, and ends those that wait for a lost one:
https://docs.jax.dev/en/latest/multi_process.html.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from vit22b_jax import errors
from vit22b_jax.runtime import host

MODES = ('train', 'eval')  # modes that several processes can share
_OUT_OF_MEMORY = (
  'The devices are out of memory. A smaller batch_size, eval.batch_size or '
  'fid.batch_size (of what was running), sharding=fsdp on several devices and, '
  'to train a classifier, model.remat=full or a larger optim.accumulate need '
  'less of it; --mode=plan tells how much.'
)
_LEAVE_SECONDS = 10  # in which others may meet the same error
_SEEN_SECONDS = 10  # that a network disk may take to show a new file


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = 30,
  mode: str = 'train',
) -> None:
  """Joins the other processes; does nothing for a process on its own.

  Args:
    coordinator: HOST:PORT of process 0; None leaves the three to jax's own
      detection of TPU pods, SLURM and Open MPI.
    num_processes: how many processes there are.
    process_id: which one this is, from 0 on.
    heartbeat_seconds: of silence, until jax ends the other processes.
    mode: of the command line; modes outside of MODES take one process.

  Raises:
    UserError: the flags don't fit together, or process 0 can't be found.
  """
  flags = {
    '--coordinator': coordinator,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  given = [name for name, value in flags.items() if value is not None]
  if mode not in MODES:
    if given:
      raise errors.UserError(
        f'--mode={mode} takes one process: leave {", ".join(given)} out '
        f'({" and ".join(MODES)} take several).'
      )
    if _tasks() > 1:
      raise errors.UserError(
        f'--mode={mode} takes one process, and the launcher started '
        f'{_tasks()}: start one (srun -n 1).'
      )
    return
  if given:
    _validate_flags(flags)
  if num_processes == 1 or not (given or _is_launched()):
    return
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method='deactivate' if given else None,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )
  except ValueError as error:
    if not _tasks():
      return  # a TPU machine outside of any pod
    raise errors.UserError(
      f'jax could not find process 0 through the launcher ({error}). Name it '
      'with --coordinator=HOST:PORT --num_processes=N --process_id=I; Open MPI '
      '5 sets N and I in OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_RANK.'
    ) from error


def _validate_flags(flags: Mapping[str, Any]) -> None:
  missing = [name for name, value in flags.items() if value is None]
  if missing:
    raise errors.UserError(
      f'{" and ".join(missing)} missing: several processes need all of '
      '--coordinator=HOST:PORT (of process 0), --num_processes=N and '
      '--process_id=0 to N-1; a process on its own needs none of them.'
    )
  coordinator, count, index = flags.values()
  if count < 1:
    raise errors.UserError(f'--num_processes={count}: expected at least 1.')
  if not 0 <= index < count:
    raise errors.UserError(
      f'--process_id={index} with --num_processes={count}: expected 0 to '
      f'{count - 1}, another one in each process.'
    )
  host_name, _, port = coordinator.rpartition(':')
  if not host_name or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise errors.UserError(
      f'--coordinator={coordinator}: expected HOST:PORT of the machine of '
      'process 0, as in --coordinator=10.0.0.1:8476; any free port does.'
    )


def _is_launched() -> bool:
  """Returns whether a launcher, or a TPU pod, may have started several."""
  wants_tpu = 'tpu' in (os.environ.get('JAX_PLATFORMS') or 'tpu')
  return _tasks() > 1 or (wants_tpu and host.has_tpu())


def _tasks() -> int:
  """Returns the number of tasks of a launcher, 0 without one.

  A SLURM batch script has no step: it is a process on its own.
  """
  names = ('OMPI_COMM_WORLD_SIZE', 'SLURM_STEP_NUM_TASKS')
  return next((int(os.environ[n]) for n in names if n in os.environ), 0)


def explained(error: Exception) -> Exception:
  """Returns a UserError in place of jax's own where memory ran out."""
  is_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if not is_jax or 'RESOURCE_EXHAUSTED' not in str(error):
    return error
  return errors.UserError(f'{_OUT_OF_MEMORY} ({str(error)[:200]})')


def exit_on_error(error: Exception) -> None:
  """Ends one of several processes with an error; returns in a single process.

  Nothing is unwound, since cleaning up (a save in progress) may wait for the
  other processes. Those that meet an error as well within some seconds leave
  together; otherwise jax ends the others for want of heartbeats.

  A UserError gives exit code 2, anything else a traceback and 1.
  """
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return
  error = explained(error)
  mistake = isinstance(error, errors.UserError)
  sys.stdout.flush()
  if mistake:
    print(f'error: {errors.printable(error)}', file=sys.stderr, flush=True)
  else:
    traceback.print_exception(error)
  try:
    multihost.get_barrier_sync_fn()(
      key='exit_on_error', timeout_ms=1000 * _LEAVE_SECONDS
    )
    jax.distributed.shutdown()
  except jax.errors.JaxRuntimeError:
    pass  # the others didn't come
  sys.stderr.flush()
  os._exit(2 if mistake else 1)


def broadcast_json(value: Any) -> Any:
  """Returns process 0's JSON value, in every process."""
  if jax.process_count() == 1:
    return value
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  # A power of two, so that few programs are compiled.
  padded = np.zeros(max(64, 1 << (length - 1).bit_length()), np.uint8)
  if jax.process_index() == 0:
    padded[:length] = data
  padded = multihost_utils.broadcast_one_to_all(padded)
  return json.loads(padded[:length].tobytes())


def gather(value: int) -> list[int]:
  """Returns each process's number, ordered by process, in every process."""
  return multihost_utils.process_allgather(np.int32(value)).tolist()


def processes_where(value: bool) -> list[int]:
  """Returns the numbers of the processes whose value is true, in all."""
  return [i for i, found in enumerate(gather(value)) if found]


def run_on_process_zero_first(function: Callable[[], Any]) -> Any:
  """Runs a function on process 0, then on the others, which find its files.

  Raises:
    UserError: in every process, if process 0 raises it.
  """
  if jax.process_count() == 1:
    return function()
  result, problem = None, None
  if jax.process_index() == 0:
    try:
      result = function()
    except errors.UserError as error:
      problem = str(error)
  problem = broadcast_json(problem)
  if problem:
    raise errors.UserError(problem)
  return result if jax.process_index() == 0 else function()


def validate_shared(path: epath.Path) -> None:
  """Raises UserError unless all processes see what process 0 writes at `path`.

  All raise it, and it names those that don't.
  """
  if jax.process_count() == 1:
    return
  name = broadcast_json(f'.seen_by_all_{os.getpid()}_{time.time_ns()}')
  if jax.process_index() == 0:
    (path / name).write_text('')
  multihost_utils.sync_global_devices('written')
  end = time.monotonic() + _SEEN_SECONDS
  while not (path / name).exists() and time.monotonic() < end:
    time.sleep(0.1)
  blind = processes_where(not (path / name).exists())
  if jax.process_index() == 0:
    (path / name).unlink(missing_ok=True)
  if blind:
    place = broadcast_json(os.fspath(path))
    raise errors.UserError(
      f'Processes {blind} do not see the files that process 0 writes into '
      f'{place}: with several processes --workdir must be on a disk that all '
      'machines share, or gs://.'
    )
