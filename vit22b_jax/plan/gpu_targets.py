"""Describes NVIDIA GPUs to XLA, so that programs compile without the cards.

    devices = gpu_targets.devices('h100', 8)
    compiled = topologies.compile_for(devices[0], lowered)

Needs jax's CUDA plugin, and cuDNN for its attention alone; no driver, no GPU.
A program for devices described here can be read, not run: `memory_analysis()`
and `as_text()` work, `cost_analysis()` is None. Nothing is tuned on a card, and
workspaces that libraries ask for at run time are not in its memory.

Sources: NVIDIA's architecture white papers and data sheets of each card, the
table "Technical Specifications per Compute Capability" of the CUDA C++
programming guide. The text is XLA's `GpuTargetConfigProto`
(github.com/openxla/xla, xla/stream_executor/device_description.proto).
"""

import contextlib
import importlib.metadata
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from vit22b_jax import errors
from vit22b_jax.runtime import chips

INSTALL = "pip install '.[plan-gpu]' (Linux; no GPU needed)"

# Per streaming multiprocessor, by compute capability: bytes of shared memory,
# those that a block may take of them, threads, float32 units.
_CORES = {
  (8, 0): (167_936, 166_912, 2048, 64),
  (8, 6): (102_400, 101_376, 1536, 128),
  (8, 9): (102_400, 101_376, 1536, 128),
  (9, 0): (233_472, 232_448, 2048, 128),
  (10, 0): (233_472, 232_448, 2048, 128),
  (12, 0): (102_400, 101_376, 1536, 128),
}


# By the names of `chips.CHIPS`: CUDA's compute capability, streaming
# multiprocessors, MiB of level-2 cache, GHz of the boost clock.
CARDS = {
  'a100': ((8, 0), 108, 40, 1.41),
  'a6000': ((8, 6), 84, 6, 1.8),
  'a10g': ((8, 6), 80, 6, 1.71),
  'rtx3090': ((8, 6), 82, 6, 1.695),
  'l4': ((8, 9), 58, 48, 2.04),
  'l40s': ((8, 9), 142, 96, 2.52),
  'rtx4090': ((8, 9), 128, 72, 2.52),
  'h100': ((9, 0), 132, 50, 1.98),
  'h200': ((9, 0), 132, 50, 1.98),
  'b200': ((10, 0), 148, 126.5, 1.965),
  'rtx5090': ((12, 0), 170, 96, 2.407),
}


def version(*packages: str) -> str | None:
  """Returns the version of the first that is installed, None without any."""
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      return importlib.metadata.version(package)
  return None


def plugin_version() -> str | None:
  """Returns the version of jax's CUDA plugin, None where there is none."""
  return version('jax-cuda12-plugin', 'jax-cuda13-plugin')


def devices(name: str, count: int = 1) -> Sequence[jax.Device]:
  """Returns so many cards of CARDS to compile for.

  Raises:
    UserError: the plugin is missing, or the nodes aren't full.
  """
  if plugin_version() is None:
    raise errors.UserError(
      f"{name}:{count} needs jax's CUDA plugin, XLA's compiler for GPUs: "
      f'{INSTALL}.'
    )
  node = chips.GPUS_PER_NODE
  if count > node and count % node:
    raise errors.UserError(
      f'{name}:{count} is no whole number of nodes of {node}: give at most '
      f'{node}, or a multiple of {node}.'
    )
  hosts = max(count // node, 1)
  return topologies.get_topology_desc(
    platform='cuda',
    target_config=target_config(name),
    topology=f'1x{hosts}x{count // hosts}',
  ).devices


def target_config(name: str) -> str:
  """Returns a card's `GpuTargetConfigProto` in text form."""
  (major, minor), cores, l2_mib, clock_ghz = CARDS[name]
  shared, per_block, threads, units = _CORES[major, minor]
  chip = chips.named(name)
  return f"""
    gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {cores}
      fpus_per_core: {units}
      clock_rate_ghz: {clock_ghz}
      device_memory_size: {int(chip.hbm_bytes)}
      memory_bandwidth: {int(chip.hbm_bandwidth)}
      l2_cache_size: {int(l2_mib * 2**20)}
      shared_memory_per_core: {shared}
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: {per_block}
      threads_per_core_limit: {threads}
      threads_per_block_limit: 1024
      threads_per_warp: 32
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 8 }}
    runtime_version {{ major: 12 minor: 8 }}
    device_description_str: "NVIDIA {chip.kind.rstrip('$')}"
  """
