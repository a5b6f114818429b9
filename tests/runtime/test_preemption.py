"""Signals: heard at once, acted on when there is something to save.

What a whole run does with them is in test_main.py and test_train.py.
"""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

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
    watcher.check()
    assert watcher.exit_code == 0
    os.kill(os.getpid(), number)
    with pytest.raises(preemption.Interrupted, match=number.name):
      watcher.check()
    assert watcher.signal == number and watcher.exit_code == code
  assert signal.getsignal(number) is before
  assert f'{number.name}: saving everything' in capfd.readouterr().err


def test_the_innermost_watcher_hears():
  with preemption.Watcher() as outer:
    outer.started = True
    with preemption.Watcher() as inner:
      inner.started = True
      os.kill(os.getpid(), signal.SIGTERM)
      with pytest.raises(preemption.Interrupted):
        inner.check()
    outer.check()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(preemption.Interrupted, match='SIGINT'):
      outer.check()


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
