"""Compiles programs for devices that needn't be at hand.

compiled = ahead.compile_for(topology.devices[0], lowered)
"""

import contextlib

import jax
from jax.experimental.compilation_cache import compilation_cache

# Without tuning on a card, XLA's Triton products end in "Couldn't find output
# tile sizes"; cuBLAS, which a tuned program mostly calls, takes any shape.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}


def compile_for(
  device: jax.Device, lowered: jax.stages.Lowered
) -> jax.stages.Compiled:
  """Compiles a program for devices of a kind, past jax's cache on disk.

  The cache can't be read for devices that aren't here, and what it gives back
  would say nothing of the compiler's time.

  Args:
    device: any of those that the program was lowered for.
    lowered: of `jax.jit(...).lower(...)`.
  """
  gpu = device.platform in ('gpu', 'cuda')
  with without_disk_cache():
    return lowered.compile(compiler_options=_GPU_OPTIONS if gpu else None)


@contextlib.contextmanager
def without_disk_cache():
  """Switches jax's cache of compiled programs off, and on again."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # whether to use it is looked up once
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
