"""Gives a workdir one owner: another process that trains there is refused.

    with lock.held(workdir):
      ...

`WORKDIR/.lock` names the owner, who writes it anew every few seconds. A process
that finds it there looks whether the owner lives: on the same machine at once,
by its process number and start; on another one (a shared disk, `gs://`) by
waiting for the next writing. So a crashed owner holds nothing for long.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.runtime import distributed
from vit22b_jax.runtime import workdir as workdir_lib

NAME = '.lock'
BEAT_SECONDS = 5.0  # between two writings
PATIENCE_SECONDS = 25.0  # without one, after which the owner is gone
_SETTLE_SECONDS = 1.0  # in which two that came at once see who was last


@contextlib.contextmanager
def held(workdir: epath.PathLike) -> Iterator[None]:
  """Owns a workdir; of several processes, process 0 does so for all.

  The folder, local or remote, exists.

  Raises:
    UserError: another process trains there; names its machine and number.
  """
  path = epath.Path(workdir) / NAME
  me = {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'started': _start_of(os.getpid()),
    'token': os.urandom(8).hex(),
    'beat': 0,
  }
  distributed.run_on_process_zero_first(
    lambda: _acquire(path, me) if jax.process_index() == 0 else None
  )
  if jax.process_index() > 0:
    yield
    return
  released = threading.Event()
  thread = threading.Thread(
    target=_keep, args=(path, me, released), daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    released.set()
    thread.join()
    with contextlib.suppress(OSError):
      if _owner(path).get('token') == me['token']:
        path.unlink()


def _start_of(pid: int) -> str | None:
  """Returns when a process started, in the kernel's ticks; None if it's gone.

  Numbers are given again, after a restart of a container for one.
  """
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
    state, *fields = text.rpartition(')')[2].split()
    return None if state == 'Z' else fields[18]
  except OSError:
    pass
  if sys.platform == 'linux':
    return None
  try:
    os.kill(pid, 0)
  except OSError:
    return None
  return 'unknown'


def _owner(path: epath.Path) -> dict[str, Any]:
  """Returns what the file says of the owner; {} for none, or for rubbish."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _write(path: epath.Path, me: dict[str, Any]) -> None:
  new = path.parent / f'{NAME}_{me["token"]}'
  new.write_text(json.dumps(me))
  new.replace(path)


def _create(path: epath.Path, me: dict[str, Any]) -> bool:
  """Writes a local file if there is none; object stores can't do that."""
  if files.is_remote(path) or path.exists():
    return False
  try:
    with open(path, 'x') as file:
      json.dump(me, file)
  except FileExistsError:
    time.sleep(_SETTLE_SECONDS)  # until it is written
    return False
  return True


def _acquire(path: epath.Path, me: dict[str, Any]) -> None:
  """Writes this process down as the owner, unless a living one is.

  Raises:
    UserError: another process owns the folder, or the folder can't be written.
  """
  with workdir_lib.explaining(path.parent):
    if _create(path, me):
      return
    owner = _owner(path)
    if not (owner and _lives(path, owner, me)):
      _write(path, me)
      time.sleep(_SETTLE_SECONDS)  # of those that came at once the last stays
      owner = _owner(path)
      if owner.get('token') == me['token']:
        return
  raise errors.UserError(
    f'The workdir {path.parent} is in use: process {owner.get("pid")} on '
    f'{owner.get("host")} trains there. Wait for it or stop it, or choose '
    'another --workdir.'
  )


def _lives(path: epath.Path, owner: dict[str, Any], me: dict[str, Any]) -> bool:
  if owner.get('host') == me['host'] and isinstance(owner.get('pid'), int):
    return _start_of(owner['pid']) == owner.get('started')
  logging.warning(
    '%s names process %s on %s; waiting up to %.0f s for a sign of life.',
    *(path, owner.get('pid'), owner.get('host'), PATIENCE_SECONDS),
  )
  end = time.monotonic() + PATIENCE_SECONDS
  while time.monotonic() < end:
    if (now := _owner(path)) != owner:
      return bool(now)
    time.sleep(0.2)
  return False


def _keep(
  path: epath.Path, me: dict[str, Any], released: threading.Event
) -> None:
  """Writes the owner down anew until it is released, or the folder is lost."""
  while not released.wait(BEAT_SECONDS):
    try:
      owner = _owner(path)
      if owner and owner.get('token') != me['token']:
        break
      me['beat'] += 1
      _write(path, me)
    except OSError as error:  # a disk that is full or away may come back
      logging.info('%s: %s', path, error)
  else:
    return
  print(
    f'\nerror: the workdir {path.parent} was taken over by process '
    f'{owner.get("pid")} on {owner.get("host")}, which saw no sign of this one '
    f'for {PATIENCE_SECONDS:.0f} s; this process ends.',
    file=sys.stderr,
    flush=True,
  )
  os._exit(2)
