"""Finds hardware by name: `v4:8x8x16`, `h100:8`, `local`.

topology = topologies.find('v5e:2x4')
topology.chip, topology.devices
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from vit22b_jax import errors
from vit22b_jax.plan import gpu_targets
from vit22b_jax.runtime import chips, flops

LOCAL = 'local'
_KNOWN = (
  'v4:XxYxZ, v5p:XxYxZ, v5e:XxY, v6e:XxY (TPU slices by their chips, such as '
  f'v4:8x8x16 or v5e:2x4), {":N, ".join(gpu_targets.CARDS)}:N (GPUs, such as '
  'h100:8), local (the devices at hand)'
)
# Without tuning on a card, XLA's Triton products end in "Couldn't find output
# tile sizes"; cuBLAS, which a tuned program mostly calls, takes any shape.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}
# Axes of a multiple of so many chips are rings, by the axes of the torus.
_RINGS = {2: 16, 3: 4}
# libtpu would ask the host which TPU it has, complain that it has none, and let
# one process at a time use it.
_NO_HOST = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Holds where a run would live."""

  name: str  # as it was asked for
  chip: chips.Chip
  shape: tuple[int, ...]  # a TPU slice's axes, or (GPUs,)
  devices: Sequence[jax.Device]  # what jax compiles for


def find(name: str) -> Topology:
  """Returns the hardware of that name.

  Raises:
    UserError: the name isn't known, or its compiler isn't installed.
  """
  if name == LOCAL:
    return _local()
  kind, _, sizes = name.partition(':')
  chip = chips.named(kind)
  axis = '[1-9][0-9]{0,5}'
  if chip is None or not re.fullmatch(f'{axis}(x{axis})*', sizes):
    raise errors.UserError(
      f'--topology={name} is not known. Known: {_KNOWN}.'
      + errors.did_you_mean(kind, [c.name for c in chips.CHIPS if c.is_planned])
    )
  shape = tuple(int(size) for size in sizes.split('x'))
  if not chip.torus:
    count = math.prod(shape)
    return Topology(name, chip, (count,), gpu_targets.devices(kind, count))
  if len(shape) != chip.torus:
    raise errors.UserError(
      f'--topology={name}: a {kind} slice has {chip.torus} axes, such as '
      f'{kind}:{"x".join(["4"] * chip.torus)}.'
    )
  return Topology(name, chip, shape, _tpu_devices(name, chip, shape))


def _tpu_devices(
  name: str, chip: chips.Chip, shape: tuple[int, ...]
) -> Sequence[jax.Device]:
  if importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(
      f"--topology={name} needs libtpu, XLA's compiler for TPUs (a TPU isn't "
      "needed): pip install '.[tpu]'."
    )
  for key, value in _NO_HOST.items():
    os.environ.setdefault(key, value)
  options = {}
  if chip.torus == 3:
    # A chip's two cores are one device.
    options['chip_config_name'] = 'megacore'
  if math.prod(shape) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f'--topology={name}: libtpu does not know such a slice '
      f'({str(error).splitlines()[0]}). Axes are even numbers of chips '
      f'(2x2 are a board), or all 1: {_KNOWN}.'
    ) from error


def _local() -> Topology:
  devices = jax.devices()
  chip = chips.of_device(devices[0].device_kind)
  if chip is None or not chip.is_planned:
    chip = _measured(devices)
  limit = (devices[0].memory_stats() or {}).get('bytes_limit')
  if limit:  # A100s have 40 or 80 GB, and jax leaves a part of it alone
    chip = dataclasses.replace(chip, hbm_bytes=limit)
  # Axes of the slice that TPUs lie in.
  places = [getattr(device, 'coords', None) for device in devices]
  shape = (len(devices),)
  if None not in places:
    shape = tuple(max(axis) + 1 for axis in zip(*places, strict=True))
  return Topology(LOCAL, chip, shape, devices)


def _measured(devices: Sequence[jax.Device]) -> chips.Chip:
  """Measures a CPU, or a chip that isn't listed, in a moment."""
  device = devices[0]
  cpu = device.platform == 'cpu'
  sharing = len(devices) if cpu else 1  # simulated devices share their memory
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / sharing
  x = jax.device_put(jnp.zeros((2**26,), jnp.float32), device)
  copy = jax.jit(lambda x: x + 1)
  copy(x).block_until_ready()
  start = time.perf_counter()
  copy(x).block_until_ready()
  bandwidth = 2 * x.nbytes / (time.perf_counter() - start) / sharing
  link = bandwidth if cpu else 25e9  # others meet over PCIe 4.0 x16
  known, peak = chips.of_device(device.device_kind), flops.peak(device)
  float32 = known.float32_flops if known else peak
  speeds = peak, float32, memory, bandwidth, link
  return chips.Chip(LOCAL, device.device_kind, *speeds)


def compiler_versions() -> dict[str, str | None]:
  """Returns the versions of what compiles; None for what isn't installed."""
  names = ('jax', 'jaxlib', 'libtpu')
  versions = {name: gpu_targets.version(name) for name in names}
  return versions | {'cuda_plugin': gpu_targets.plugin_version()}


def compile_for(
  device: jax.Device, lowered: jax.stages.Lowered
) -> jax.stages.Compiled:
  """Compiles a program for devices of a kind, past jax's cache on disk.

  The cache can't be read for devices that aren't here, and what it gives back
  would say nothing of the compiler's time.
  """
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # whether to use it is looked up once
  try:
    gpu = device.platform in ('gpu', 'cuda')
    return lowered.compile(compiler_options=_GPU_OPTIONS if gpu else None)
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def bandwidth(
  topology: Topology, mesh: jax.sharding.Mesh, group: tuple[int, ...]
) -> float:
  """Returns the bytes/s that a device sends to the next of its group.

  `group` holds positions in the mesh. A ring along one axis of a torus uses
  both directions of its links; along several at once, as a ring algorithm is
  run for each, those of all. An axis that doesn't close to a ring counts one
  direction (jax-ml.github.io/scaling-book/sharding). Between nodes of GPUs, the
  members of a node share what has to leave it.
  """
  chip, devices = topology.chip, mesh.devices.ravel()
  if chip.network_bandwidth:
    nodes = len({devices[i].id // chips.GPUS_PER_NODE for i in group})
    if nodes == 1:
      return chip.link_bandwidth
    share = chip.network_bandwidth * len(group) / nodes
    return min(chip.link_bandwidth, share)
  if not chip.torus:
    return chip.link_bandwidth
  closes = [size % _RINGS[chip.torus] == 0 for size in topology.shape]
  if chip.torus == 3:  # smaller slices than cubes of 4 x 4 x 4 have no rings
    closes = [all(closes)] * 3
  places = [devices[i].coords for i in group]
  links = 0
  for axis, size in enumerate(topology.shape):
    here = {place[axis] for place in places}
    if len(here) > 1:
      whole = len(here) == size and closes[axis]
      links += 2 if whole else 1
  return chip.link_bandwidth * max(links, 1)
