"""Signals: heard at once, acted on when there is something to save.

What a whole run does with them is in test_main.py and test_train.py.
"""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from jax.experimental import multihost_utils

from vit22b_jax.runtime import preemption

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_after_the_first_step_waits_to_be_asked_for(
  number, code, capfd
):
  before = signal.getsignal(number)
  with preemption.Watcher() as watcher:
    watcher.started = True
    assert not watcher.should_stop(1) and watcher.exit_code == 0
    os.kill(os.getpid(), number)
    assert watcher.should_stop(2)
    assert watcher.signal == number and watcher.exit_code == code
  assert signal.getsignal(number) is before
  assert f'{number.name}: saving everything' in capfd.readouterr().err


def test_the_innermost_watcher_hears():
  with preemption.Watcher() as outer:
    outer.started = True
    with preemption.Watcher() as inner:
      inner.started = True
      os.kill(os.getpid(), signal.SIGTERM)
      assert inner.should_stop(1)
    assert not outer.should_stop(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert outer.should_stop(2) and outer.exit_code == 130


def test_several_processes_leave_signals_to_jax(monkeypatch):
  """Lets jax bring all of them to stop after the same step."""
  heard = []
  monkeypatch.setattr(os, 'kill', lambda _, number: heard.append(number))
  monkeypatch.setattr(
    multihost_utils,
    'reached_preemption_sync_point',
    lambda step: bool(heard) and step == 3,
  )
  with preemption.Watcher(together=True) as watcher:
    signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGTERM]
    assert not watcher.should_stop(2) and watcher.exit_code == 0
    assert watcher.should_stop(3) and watcher.exit_code == 143


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_before_it_ends_the_process_even_in_a_long_call(number, code):
  """As in a compilation: a minute in C code that returns to no byte code."""
  program = (
    'import hashlib\n'
    'from vit22b_jax.runtime import preemption\n'
    'with preemption.Watcher():\n'
    '  print("ready", flush=True)\n'
    '  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', program],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(number)
  _, err = process.communicate(timeout=20)
  assert process.returncode == code
  assert f'Stopped by {number.name}: there was nothing to save yet.' in err
  assert 'Traceback' not in err


def test_listening_starts_before_jax():
  program = (
    'import sys; from vit22b_jax.runtime import preemption; '
    'assert "jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)
