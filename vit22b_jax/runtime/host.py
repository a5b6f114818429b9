"""Prepares the host process for jax, and starts jax's backend."""

import contextlib
import ctypes
import glob
import importlib.util
import os
import pathlib
import sys
import time

from vit22b_jax import errors
from vit22b_jax.data import cache

# When the process began, or at least this package in it.
STARTED = time.monotonic()

# malloc.h of the GNU C library: man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

# The part of a GPU's memory that jax takes: about what a card is sold with
# (`chips`), which is what a plan counts on; the rest is the driver's.
_GPU_MEMORY = '0.94'
_CUDA_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')


def prepare() -> None:
  """Sets what jax reads or uses from its start on; call it before importing it.

  Compiled programs are cached on disk, in the same folder as decoded images
  (`data.cache`), so that the second start of a run doesn't compile again. XLA
  reports fatal errors alone: what it logs as an error besides ("Very slow
  compile?") has either been said or is raised. Variables of the user have the
  last word.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  folder = cache.root() / 'compiled'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
  platform = expected_platform()
  if platform == 'cuda' and 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in os.environ:
    # jax's own 0.75 would leave a fifth of what plans count on.
    os.environ.setdefault('XLA_CLIENT_MEM_FRACTION', _GPU_MEMORY)
  if sys.platform == 'linux' and platform == 'cpu':
    keep_freed_memory()


def expected_platform() -> str:
  """Returns the platform that jax will use, before it starts.

  That is the one JAX_PLATFORMS names first; else that of an accelerator in the
  machine whose plugin is installed; else 'cpu'.
  """
  named = os.environ.get('JAX_PLATFORMS', '').split(',')[0].strip()
  if named:
    return named
  if has_tpu() and _is_installed('libtpu'):
    return 'tpu'
  if has_gpu() and any(map(_is_installed, _CUDA_PLUGINS)):
    return 'cuda'
  return 'cpu'


def keep_freed_memory() -> None:
  """Makes the C library hand freed memory out again instead of returning it.

  XLA's CPU backend allocates gigabytes of temporaries anew each step, and the
  GNU C library maps and unmaps them: a fifth of a step's time went into page
  faults. With one arena, though, threads that decode images wait for each
  other, so accelerators' hosts are left as they are.
  """
  with contextlib.suppress(OSError, AttributeError):  # another C library
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
  """Gives back what is free now, after compiling or evaluating took gigabytes.

  `keep_freed_memory` would hold it for steps that never ask for as much: 0.8 GB
  of 3.0 after a ViTUnet-S was compiled, 1.6 of 4.9 after the first validation
  of a ViT-22B-Ti/4.
  """
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL('libc.so.6').malloc_trim(0)


def has_tpu() -> bool:
  """Returns whether a TPU is in the machine: a Google PCI device and a node."""
  if not glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*'):
    return False
  vendors = glob.glob('/sys/bus/pci/devices/*/vendor')
  return any(pathlib.Path(x).read_text().strip() == '0x1ae0' for x in vendors)


def has_gpu() -> bool:
  """Returns whether an NVIDIA GPU is there (a node; Windows' in WSL)."""
  nodes = ('/proc/driver/nvidia/version', '/dev/nvidia0', '/dev/dxg')
  return any(map(os.path.exists, nodes))


def start_backend() -> None:
  """Starts the backend that jax chooses, or JAX_PLATFORMS names.

  jax itself warns of a GPU or TPU that it has no plugin for.

  Raises:
    UserError: JAX_PLATFORMS names a platform that can't be started.
  """
  import jax

  try:
    platform = jax.default_backend()
  except (RuntimeError, AssertionError) as error:
    named = os.environ.get('JAX_PLATFORMS', '')
    reason = str(error).strip().split('\n')[0] or 'no such device'
    raise errors.UserError(
      f"JAX_PLATFORMS={named}: jax can't start there ({reason[:300]}). "
      "Install its plugin (pip install '.[cuda12]', '.[cuda13]' or '.[tpu]'), "
      'or unset JAX_PLATFORMS to take what there is.'
    ) from error
  if platform == 'cpu' and jax.process_count() > 1:
    # Only process 0 has it on CPUs, and Gloo waits just 30 s for the others.
    jax.config.update('jax_enable_compilation_cache', False)


def _is_installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None
