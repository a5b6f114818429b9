"""Describes NVIDIA GPUs to XLA, so that programs compile without the cards.

    devices = gpu_targets.devices('h100', 8)
    compiled = ahead.compile_for(devices[0], lowered)

Needs jax's CUDA plugin, and cuDNN for its attention alone; no driver, no GPU.
A program for devices described here can be read, not run: `memory_analysis()`
and `as_text()` work, `cost_analysis()` is None. Nothing is tuned on a card, and
workspaces that libraries ask for at run time are not in its memory.

Sources: NVIDIA's architecture white papers and data sheets of each card, the
table "Technical Specifications per Compute Capability" of the CUDA C++
programming guide. The text is XLA's `GpuTargetConfigProto`
(github.com/openxla/xla, xla/stream_executor/device_description.proto).
"""

import dataclasses
import importlib.metadata
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from vit22b_jax import errors
from vit22b_jax.runtime import chips

INSTALL = "pip install '.[plan-gpu]' (Linux; no GPU needed)"
_PLUGIN = re.compile(r'jax-cuda\d+-plugin')

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


@dataclasses.dataclass(frozen=True)
class Card:
  """Holds what XLA asks of a card beyond memory and bandwidth.

  Attributes:
    kind: its name as CUDA tells it.
    capability: CUDA's compute capability, (major, minor).
    cores: streaming multiprocessors.
    l2_mib: level-2 cache.
    clock_ghz: boost clock.
  """

  kind: str
  capability: tuple[int, int]
  cores: int
  l2_mib: float
  clock_ghz: float


# By the names of `chips.CHIPS`.
CARDS = {
  'a100': Card('NVIDIA A100-SXM4-80GB', (8, 0), 108, 40, 1.41),
  'a6000': Card('NVIDIA RTX A6000', (8, 6), 84, 6, 1.8),
  'a10g': Card('NVIDIA A10G', (8, 6), 80, 6, 1.71),
  'rtx3090': Card('NVIDIA GeForce RTX 3090', (8, 6), 82, 6, 1.695),
  'l4': Card('NVIDIA L4', (8, 9), 58, 48, 2.04),
  'l40s': Card('NVIDIA L40S', (8, 9), 142, 96, 2.52),
  'rtx4090': Card('NVIDIA GeForce RTX 4090', (8, 9), 128, 72, 2.52),
  'h100': Card('NVIDIA H100 80GB HBM3', (9, 0), 132, 50, 1.98),
  'h200': Card('NVIDIA H200', (9, 0), 132, 50, 1.98),
  'b200': Card('NVIDIA B200', (10, 0), 148, 126.5, 1.965),
  'rtx5090': Card('NVIDIA GeForce RTX 5090', (12, 0), 170, 96, 2.407),
}


def plugin_version() -> str | None:
  """Returns the version of jax's CUDA plugin, None where there is none."""
  for package in importlib.metadata.distributions():
    name = re.sub('[-_.]+', '-', package.name or '').lower()
    if _PLUGIN.fullmatch(name):
      return package.version
  return None


def devices(name: str, count: int = 1) -> Sequence[jax.Device]:
  """Returns described devices to compile for.

  Args:
    name: a key of CARDS, such as 'h100'.
    count: cards; more than a node holds are a multiple of that.

  Raises:
    UserError: the plugin is missing, the card is unknown, or the nodes aren't
      full.
  """
  chip = chips.named(name)
  if name not in CARDS or chip is None:
    raise errors.UserError(
      f'{name!r} is no described GPU; known: {", ".join(CARDS)}.'
    )
  if plugin_version() is None:
    raise errors.UserError(
      f"Compiling for {name} needs jax's CUDA plugin: {INSTALL}."
    )
  hosts = max(count // chip.node, 1)
  if count < 1 or count % hosts or count // hosts > chip.node:
    raise errors.UserError(
      f'{name}:{count} is no whole number of nodes of {chip.node}: give at '
      f'most {chip.node}, or a multiple of {chip.node}.'
    )
  return topologies.get_topology_desc(
    platform='cuda',
    target_config=target_config(name),
    topology=f'1x{hosts}x{count // hosts}',
  ).devices


def target_config(name: str) -> str:
  """Returns a card's `GpuTargetConfigProto` in text form."""
  card, chip = CARDS[name], chips.named(name)
  shared, per_block, threads, units = _CORES[card.capability]
  major, minor = card.capability
  return f"""
    gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {card.cores}
      fpus_per_core: {units}
      clock_rate_ghz: {card.clock_ghz}
      device_memory_size: {int(chip.hbm_bytes)}
      memory_bandwidth: {int(chip.hbm_bandwidth)}
      l2_cache_size: {int(card.l2_mib * 2**20)}
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
    device_description_str: "{card.kind}"
  """
