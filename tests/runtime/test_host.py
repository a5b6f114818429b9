"""The process's settings reach jax, and leave the user's own alone."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from vit22b_jax import errors
from vit22b_jax.runtime import host

ROOT = pathlib.Path(__file__).parents[2]

_SHOW = (
  'from vit22b_jax.runtime import host; host.prepare(); import jax; '
  'print(jax.config.jax_compilation_cache_dir)'
)


@pytest.fixture
def machine(monkeypatch):
  """Sets what is in the machine and what is installed."""

  def set_(gpu=False, tpu=False, installed=(), platforms=None):
    monkeypatch.setattr(host, 'has_gpu', lambda: gpu)
    monkeypatch.setattr(host, 'has_tpu', lambda: tpu)
    monkeypatch.setattr(host, '_is_installed', lambda name: name in installed)
    monkeypatch.delenv('JAX_PLATFORMS')
    if platforms is not None:
      monkeypatch.setenv('JAX_PLATFORMS', platforms)

  return set_


@pytest.mark.parametrize(
  ('there', 'platform'),
  [
    ({}, 'cpu'),
    ({'gpu': True}, 'cpu'),
    ({'tpu': True}, 'cpu'),
    ({'gpu': True, 'installed': {'jax_cuda12_plugin'}}, 'cuda'),
    ({'gpu': True, 'installed': {'jax_cuda13_plugin'}}, 'cuda'),
    ({'tpu': True, 'installed': {'libtpu'}}, 'tpu'),
    ({'installed': {'libtpu', 'jax_cuda12_plugin'}}, 'cpu'),
    ({'platforms': 'cuda,cpu'}, 'cuda'),
  ],
)
def test_the_platform_is_what_is_there_and_installed(there, platform, machine):
  machine(**there)
  assert host.expected_platform() == platform


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
def test_memory_is_kept_for_cpus_alone(platform, monkeypatch):
  kept = []
  monkeypatch.setattr(host, 'keep_freed_memory', lambda: kept.append(1))
  monkeypatch.setenv('JAX_PLATFORMS', platform)
  host.prepare()
  assert len(kept) == (platform == 'cpu' and sys.platform == 'linux')


@pytest.mark.parametrize(
  ('platform', 'given', 'taken'),
  [
    ('cuda', {}, '0.94'),
    ('cuda', {'XLA_CLIENT_MEM_FRACTION': '.5'}, '.5'),
    ('cuda', {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.5'}, None),
    ('cpu', {}, None),
  ],
)
def test_a_gpu_gives_the_memory_that_plans_count_on(
  platform, given, taken, monkeypatch
):
  environment = {'JAX_PLATFORMS': platform, **given}
  monkeypatch.setattr(host.os, 'environ', environment)
  monkeypatch.setattr(host, 'keep_freed_memory', lambda: None)
  host.prepare()
  assert environment.get('XLA_CLIENT_MEM_FRACTION') == taken


def test_a_platform_that_is_not_there_is_one_message(monkeypatch):
  def default_backend():
    raise RuntimeError("Unable to initialize backend 'cuda': no.\nMore.")

  monkeypatch.setattr(jax, 'default_backend', default_backend)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(errors.UserError, match=r'JAX_PLATFORMS=cuda.*cuda12'):
    host.start_backend()


@pytest.mark.parametrize(
  ('version', 'extra'),
  [('535.104.05', '-cuda12'), ('580.65.06', '-cuda13'), (None, '')],
)
def test_make_installs_what_the_driver_takes(version, extra, tmp_path):
  program = tmp_path / 'nvidia-smi'
  shown = f'NVIDIA-SMI {version}  Driver Version: {version}  CUDA Version: 12.2'
  program.write_text(f'#!/bin/sh\necho "{shown if version else "failed"}"\n')
  program.chmod(0o755)
  done = subprocess.run(
    ['make', '-n', 'run', f'VENV={tmp_path}/venv'],
    cwd=ROOT,
    env=os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert f'{tmp_path}/venv/.installed{extra}\n' in done.stdout


def _shown(**variables):
  environment = {**os.environ, **variables}
  for name in [k for k, v in environment.items() if v is None]:
    del environment[name]
  return subprocess.run(
    [sys.executable, '-c', _SHOW],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


def test_compiled_programs_are_cached(tmp_path):
  shown = _shown(JAX_COMPILATION_CACHE_DIR=None, VIT22B_JAX_CACHE=str(tmp_path))
  assert shown == str(tmp_path / 'compiled')


def test_the_users_caches_may_lie_elsewhere(tmp_path):
  shown = _shown(
    JAX_COMPILATION_CACHE_DIR=None,
    VIT22B_JAX_CACHE=None,
    XDG_CACHE_HOME=str(tmp_path),
  )
  assert shown == str(tmp_path / 'vit22b_jax' / 'compiled')


def test_jax_variables_have_the_last_word(tmp_path):
  assert _shown(JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == str(tmp_path)


# Adding up 1,681 neighbors of each of two million ones takes minutes, and XLA
# does it while it compiles.
_SLOW = """
import os, threading
from vit22b_jax.runtime import host
host.prepare()
import jax
from jax import lax, numpy as jnp

def total():
  ones = jnp.ones((1400, 1400))
  sums = lax.reduce_window(ones, 0.0, lax.add, (41, 41), (1, 1), 'SAME')
  return sums.sum()

compiling = threading.Thread(target=jax.jit(total), daemon=True)
compiling.start()
compiling.join(5)
assert compiling.is_alive()
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize('level', [None, '2'])
def test_alarms_of_a_slow_compilation_reach_who_asked_for_them(level, tmp_path):
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
  environment.pop('TF_CPP_MIN_LOG_LEVEL')
  if level:
    environment['TF_CPP_MIN_LOG_LEVEL'] = level
  done = subprocess.run(
    [sys.executable, '-c', _SLOW],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert ('slow_operation_alarm' in done.stderr) == bool(level), done.stderr


_FREED = """
import pathlib, re
import numpy as np
from vit22b_jax.runtime import host

def resident():
  text = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmRSS:\\s+(\\d+) kB', text)[1]) / 1e3

host.keep_freed_memory()
before = resident()
arrays = [np.ones(2**17) for _ in range(100)]  # 1 MiB each
arrays = arrays[-1]  # the last one pins the top of the heap
kept = resident() - before
host.return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='of the GNU C library')
def test_freed_memory_is_kept_until_it_is_given_back():
  command = [sys.executable, '-c', _FREED]
  found = subprocess.check_output(command, cwd=ROOT, text=True)
  kept, left = map(float, found.split())
  assert kept > 100
  assert left < 20
