"""A workdir has one owner, and a crashed one holds nothing for long."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

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


@pytest.fixture
def owner(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', OWNER, tmp_path],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.communicate()


def refuse(folder, message):
  with pytest.raises(errors.UserError, match=message), lock.held(folder):
    pass


def test_a_second_process_is_refused_until_the_first_is_gone(owner, tmp_path):
  refuse(tmp_path, f'process {owner.pid} on')
  owner.send_signal(signal.SIGKILL)
  owner.wait()
  assert (tmp_path / lock.NAME).exists()
  with lock.held(tmp_path):
    assert json.loads((tmp_path / lock.NAME).read_text())['pid'] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_it_is_released_by_an_error_and_in_one_process_twice(tmp_path):
  with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
    refuse(tmp_path, 'is in use')
    raise ZeroDivisionError
  with lock.held(tmp_path):
    pass


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
  def refuse_writing(path, me):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(lock, '_create', refuse_writing)
  refuse(tmp_path, 'Could not write to the workdir .*No space left.*Make room')


@pytest.mark.slow
def test_of_many_that_come_at_once_one_stays(tmp_path):
  commands = [(sys.executable, '-c', OWNER, tmp_path)] * 4
  come = [
    subprocess.Popen(
      command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for command in commands
  ]
  end = time.monotonic() + 120
  while sum(x.poll() is None for x in come) > 1 and time.monotonic() < end:
    time.sleep(0.1)
  (left,) = [x for x in come if x.poll() is None]
  assert json.loads((tmp_path / lock.NAME).read_text())['pid'] == left.pid
  left.kill()
  for process in come:
    process.communicate()


@pytest.mark.parametrize('text', ['', '[]', 'null', '{}', '{"pid":', '\x00'])
def test_rubbish_is_nobodys_lock(tmp_path, text):
  (tmp_path / lock.NAME).write_text(text)
  with lock.held(tmp_path):
    pass


def _of_another_machine(folder, **changes):
  owner = {'host': 'elsewhere', 'pid': 7, 'started': '1', 'token': 'x'}
  (folder / lock.NAME).write_text(json.dumps(owner | changes))


def test_an_owner_on_another_machine_lives_while_it_writes(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(lock, 'PATIENCE_SECONDS', 5.0)
  _of_another_machine(tmp_path, beat=1)
  writing = threading.Timer(0.5, _of_another_machine, [tmp_path], {'beat': 2})
  writing.start()
  refuse(tmp_path, 'process 7 on elsewhere')
  writing.join()


def test_a_silent_owner_on_another_machine_is_gone(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(lock, 'PATIENCE_SECONDS', 0.5)
  _of_another_machine(tmp_path, beat=1)
  with lock.held(tmp_path):
    pass
  assert 'waiting up to' in caplog.text


def _beat(folder):
  return json.loads((folder / lock.NAME).read_text())['beat']


def test_an_owner_that_was_thought_gone_ends(tmp_path, monkeypatch, capfd):
  codes = []
  monkeypatch.setattr(lock, 'BEAT_SECONDS', 0.05)
  monkeypatch.setattr(lock.os, '_exit', codes.append)
  with lock.held(tmp_path):
    end = time.monotonic() + 10
    while not _beat(tmp_path) and time.monotonic() < end:
      time.sleep(0.01)
    assert _beat(tmp_path) and not codes
    end = time.monotonic() + 10
    while not codes and time.monotonic() < end:
      _of_another_machine(tmp_path)  # a writing under way may come after it
      time.sleep(0.1)
  assert codes == [2]
  assert 'taken over by process 7 on elsewhere' in capfd.readouterr().err
  assert (tmp_path / lock.NAME).exists()  # the other's
