"""The process's settings reach jax, and leave the user's own alone."""

import os
import subprocess
import sys

_SHOW = (
  'from vit22b_jax.runtime import host; host.prepare(); import jax; '
  'print(jax.config.jax_compilation_cache_dir)'
)


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
