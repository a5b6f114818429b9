"""A workdir has one owner, and one that was killed holds nothing."""

import errno
import pathlib
import signal
import subprocess
import sys

import filelock
import pytest

from vit22b_jax import errors
from vit22b_jax.runtime import lock

ROOT = pathlib.Path(__file__).parents[2]

OWNER = """
import sys, time
from vit22b_jax.runtime import lock
with lock.held(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


def refuse(folder, message):
  with pytest.raises(errors.UserError, match=message), lock.held(folder):
    pass


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
  command = [sys.executable, '-c', OWNER, tmp_path]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as owner:
    assert owner.stdout.readline() == b'held\n'
    refuse(tmp_path, 'is in use: another process')
    owner.send_signal(signal.SIGKILL)
  with lock.held(tmp_path):
    pass


def test_it_is_released_by_an_error_and_refused_in_one_process_twice(tmp_path):
  with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
    refuse(tmp_path, 'is in use')
    raise ZeroDivisionError
  with lock.held(tmp_path):
    pass


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
  def fail(self):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(filelock.FileLock, 'acquire', fail)
  refuse(tmp_path, 'Could not write to the workdir .*No space left.*Make room')


def test_an_object_store_has_no_lock():
  with lock.held('gs://bucket/run'), lock.held('gs://bucket/run'):
    pass
