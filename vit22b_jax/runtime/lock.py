"""Gives a workdir one owner: another process that trains there is refused.

with lock.held(workdir):
  ...
"""

import contextlib
from collections.abc import Iterator

import filelock
import jax
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.runtime import distributed
from vit22b_jax.runtime import workdir as workdir_lib

NAME = '.lock'


@contextlib.contextmanager
def held(workdir: epath.PathLike) -> Iterator[None]:
  """Owns a workdir; of several processes, process 0 does so for all.

  The operating system holds the lock until the process ends, however it ends.
  Other machines see it where their shared disk passes locks on, as NFS does;
  object stores (`gs://`) have none.

  Args:
    workdir: a folder that exists.

  Raises:
    UserError: another process trains there, or the folder can't be written.
  """
  lock = filelock.FileLock(f'{workdir}/{NAME}', timeout=0)
  owns = jax.process_index() == 0 and not files.is_remote(workdir)
  distributed.run_on_process_zero_first(
    lambda: _acquire(lock, workdir) if owns else None
  )
  try:
    yield
  finally:
    lock.release()


def _acquire(lock: filelock.BaseFileLock, workdir: epath.PathLike) -> None:
  with workdir_lib.explaining(epath.Path(workdir)):
    try:
      lock.acquire()
    except filelock.Timeout as error:  # an OSError too
      raise errors.UserError(
        f'The workdir {workdir} is in use: another process, which holds its '
        f'{NAME}, trains there. Wait for it or stop it, or choose another '
        '--workdir.'
      ) from error
