"""The host process, before jax starts in it."""

import ctypes
import os
import sys

# malloc.h of the GNU C library, https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Makes the C library hand freed memory out again instead of returning it.

  XLA's CPU backend allocates a step's temporaries anew each step, gigabytes of
  them, and the GNU C library maps and unmaps blocks of that size: a fifth of a
  step's time went into page faults. Nothing happens on other systems, or where
  an accelerator is used: there the host's memory is small change.
  """
  if sys.platform != 'linux' or os.environ.get('JAX_PLATFORMS') not in (
    None,
    '',
    'cpu',
  ):
    return
  try:
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_ARENA_MAX, 1)
  except (OSError, AttributeError):
    return  # another C library: nothing to set
