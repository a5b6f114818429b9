"""Prepares the host process for jax, and finds what is in the machine."""

import ctypes
import glob
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import time

from vit22b_jax.data import cache

# When the process began, or at least this package in it.
STARTED = time.monotonic()

# malloc.h of the GNU C library: man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_CUDA_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')


def prepare() -> None:
  """Sets what jax reads or uses from its start on; call it before importing it.

  Compiled programs are cached on disk, in the same folder as decoded images
  (`data.cache`), so that the second start of a run doesn't compile again; jax's
  own variables have the last word.
  """
  folder = cache.root() / 'compiled'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
  if sys.platform == 'linux' and expected_platform() == 'cpu':
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
  if cuda_driver() is not None and any(map(_is_installed, _CUDA_PLUGINS)):
    return 'cuda'
  return 'cpu'


def keep_freed_memory() -> None:
  """Makes the C library hand freed memory out again instead of returning it.

  XLA's CPU backend allocates a step's temporaries anew each step, gigabytes of
  them, and the GNU C library maps and unmaps blocks of that size: a fifth of a
  step's time went into page faults. With one arena, though, threads that decode
  images wait for each other, so accelerators' hosts are left as they are.
  """
  try:
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_M_ARENA_MAX, 1)
  except (OSError, AttributeError):
    return  # another C library: nothing to set


def unused_accelerator(platform: str) -> str:
  """Returns a warning of a GPU or TPU that jax lacks the plugin for, or ''.

  Args:
    platform: what jax runs on, 'cpu', 'gpu' or 'tpu'.
  """
  driver = cuda_driver()
  if platform != 'cpu' or os.environ.get('JAX_PLATFORMS'):
    return ''  # used, or left alone on purpose
  if has_tpu() and not _is_installed('libtpu'):
    kind, extra = 'a TPU', 'tpu'
  elif driver is not None and not any(map(_is_installed, _CUDA_PLUGINS)):
    kind, extra = 'an NVIDIA GPU', 'cuda13' if driver >= 580 else 'cuda12'
  else:
    return ''
  return (
    f'{kind} is in this machine, and jax runs on the CPU: '
    f"pip install '.[{extra}]'"
  )


def has_tpu() -> bool:
  """Returns whether a TPU is in the machine: a Google PCI device and a node."""
  if not glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*'):
    return False
  vendors = glob.glob('/sys/bus/pci/devices/*/vendor')
  return any(pathlib.Path(x).read_text().strip() == '0x1ae0' for x in vendors)


def cuda_driver() -> int | None:
  """Returns the major version of the NVIDIA driver; None without a GPU."""
  try:
    text = pathlib.Path('/proc/driver/nvidia/version').read_text()
  except OSError:  # Windows' subsystem for Linux has the program alone
    try:
      command = ('nvidia-smi',)
      text = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
      return None
  found = re.search(r'\b(\d{3})\.\d', text)
  return int(found[1]) if found else None


def _is_installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None
