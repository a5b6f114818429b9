"""One CPU that plays eight devices, and a compilation cache between runs.

The variables are set before jax is imported, since it reads them once.
"""

import os
import pathlib

import jaxlib
import pytest

ROOT = pathlib.Path(__file__).parent.parent

os.environ['JAX_PLATFORMS'] = 'cpu'
flags = os.environ.get('XLA_FLAGS', '')
flags += ' --xla_force_host_platform_device_count=8'
# Workers share the cores already. A program's kernels compiled in 32 parts take
# a fifth to a third more processor time than in one.
flags += ' --xla_cpu_parallel_codegen_split_count=1'
# `make test` compiles without optimizations; XLA's older way to write fusions
# then takes half the time. Since jaxlib 0.11 there is one way only.
older = jaxlib.version.__version_info__ < (0, 11)
if older and 'optimization_level=0' in flags:
  flags += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = flags.strip()
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache/jax'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ.setdefault('VIT22B_JAX_CACHE', str(ROOT / '.cache/data'))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')


@pytest.fixture
def golden():
  """Loads tests/golden/NAME.npz as a dict of arrays."""
  import numpy as np

  def load(name: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / 'tests' / 'golden' / f'{name}.npz') as file:
      return dict(file)

  return load
