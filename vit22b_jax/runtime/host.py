"""The host process, before jax starts in it."""

import ctypes
import glob
import os
import pathlib
import sys
import time

from vit22b_jax.data import cache

# When the process began, or at least this package in it.
STARTED = time.monotonic()

# malloc.h of the GNU C library: man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def prepare() -> None:
  """Sets what jax reads or uses from its start on; call it before importing it.

  Compiled programs are cached on disk, in the same folder as decoded images
  (`data.cache`), so that the second start of a run doesn't compile again; jax's
  own variables have the last word.
  """
  folder = cache.root() / 'compiled'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
  keep_freed_memory()


def keep_freed_memory() -> None:
  """Makes the C library hand freed memory out again instead of returning it.

  XLA's CPU backend allocates a step's temporaries anew each step, gigabytes of
  them, and the GNU C library maps and unmaps blocks of that size: a fifth of a
  step's time went into page faults. Nothing happens elsewhere than on Linux, or
  where JAX_PLATFORMS names another platform than the CPU alone.
  """
  platforms = os.environ.get('JAX_PLATFORMS') or 'cpu'
  if sys.platform != 'linux' or platforms != 'cpu':
    return
  try:
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_M_ARENA_MAX, 1)
  except (OSError, AttributeError):
    return  # another C library: nothing to set


def has_tpu() -> bool:
  """Returns whether a TPU is in the machine: a Google PCI device and a node."""
  if not glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*'):
    return False
  vendors = glob.glob('/sys/bus/pci/devices/*/vendor')
  return any(pathlib.Path(x).read_text().strip() == '0x1ae0' for x in vendors)
