"""Lists accelerators: peaks, memory and links, in one table.

    >>> chip = named('v4')
    >>> chip.flops / 1e12  # TFLOP/s of bfloat16 products
    275.0
    >>> chip.hbm_bytes / 2**30
    32.0

Sources. TPU: cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}; bandwidth
of a link: the interconnect table of jax-ml.github.io/scaling-book/tpus. NVIDIA:
data sheets and architecture white papers of each GPU, dense products without
sparsity that accumulate in float32; memory in units of 1e9 bytes as it is sold,
which leaves the rest of a card (up to 7 %) to driver and libraries; NVLink in
one direction is half of the sheet's figure, cards without it meet over PCIe
x16; between nodes one 400 Gbit/s port for each GPU (200 for the A100), as in
the DGX systems.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Describes one jax device of a kind.

  Attributes:
    name: as it is typed, such as 'v5e' or 'h100'.
    kind: a part of jax's `device_kind`.
    flops: peak FLOP/s of dense matrix products in bfloat16 (V100 and T4:
      float16).
    hbm_bytes: memory of a device.
    hbm_bandwidth: of that memory, bytes/s.
    link_bandwidth: of one link of a TPU's torus, or of a GPU to its node's
      switch; bytes/s in one direction.
    torus: axes of a TPU slice; 0 for GPUs.
    wraps_at: axes of a multiple of so many chips are rings, shorter ones lines;
      on a 3-D torus all of them have to be.
    node: GPUs of a node, whose links are `link_bandwidth`.
    network_bandwidth: of a GPU to other nodes, bytes/s in one direction.
  """

  name: str
  kind: str
  flops: float
  hbm_bytes: float = 0
  hbm_bandwidth: float = 0
  link_bandwidth: float = 0
  torus: int = 0
  wraps_at: int = 0
  node: int = 0
  network_bandwidth: float = 0

  @property
  def is_planned(self) -> bool:
    """Tells whether enough is known of it to plan a run."""
    return self.link_bandwidth > 0


def _tpu(name, kind, flops, gib, bandwidth, link, torus, wraps_at) -> Chip:
  return Chip(
    name=name,
    kind=kind,
    flops=flops,
    hbm_bytes=gib * 2**30,
    hbm_bandwidth=bandwidth,
    link_bandwidth=link,
    torus=torus,
    wraps_at=wraps_at,
  )


def _gpu(name, kind, flops, gigabytes, bandwidth, nvlink, network) -> Chip:
  return Chip(
    name=name,
    kind=kind,
    flops=flops,
    hbm_bytes=gigabytes * 1e9,
    hbm_bandwidth=bandwidth,
    link_bandwidth=nvlink,
    node=8,
    network_bandwidth=network,
  )


# The first whose `kind` is part of a device's kind counts, so longer ones come
# first. On TPU v2, v3 and 7x a device is one of a chip's two TensorCores.
CHIPS = (
  Chip(name='v2', kind='TPU v2', flops=22.5e12),
  Chip(name='v3', kind='TPU v3', flops=61.5e12),
  _tpu('v4', 'TPU v4', 275e12, 32, 1228e9, 45e9, 3, 4),
  _tpu('v5e', 'TPU v5 lite', 197e12, 16, 819e9, 45e9, 2, 16),
  _tpu('v5p', 'TPU v5', 459e12, 95, 2765e9, 90e9, 3, 4),
  _tpu('v6e', 'TPU v6', 918e12, 32, 1640e9, 90e9, 2, 16),
  Chip(name='v7x', kind='TPU7x', flops=1153.5e12),
  Chip(name='v100', kind='V100', flops=125e12),
  Chip(name='t4', kind='T4', flops=65e12),
  _gpu('a100', 'A100', 312e12, 80, 2039e9, 300e9, 25e9),
  _gpu('a6000', 'RTX A6000', 155e12, 48, 768e9, 25e9, 12.5e9),
  _gpu('a10g', 'A10G', 70e12, 24, 600e9, 25e9, 12.5e9),
  Chip(name='a10', kind='A10', flops=125e12),
  _gpu('l40s', 'L40S', 362e12, 48, 864e9, 25e9, 25e9),
  Chip(name='l40', kind='L40', flops=181e12),
  _gpu('l4', 'L4', 121e12, 24, 300e9, 25e9, 12.5e9),
  # Not their Ti, D and laptop forms.
  _gpu('rtx3090', 'RTX 3090$', 71e12, 24, 936e9, 25e9, 12.5e9),
  _gpu('rtx4090', 'RTX 4090$', 165e12, 24, 1008e9, 25e9, 12.5e9),
  _gpu('rtx5090', 'RTX 5090$', 209e12, 32, 1792e9, 50e9, 12.5e9),
  Chip(name='h100pcie', kind='H100 PCIe', flops=756e12),
  Chip(name='h100nvl', kind='H100 NVL', flops=835e12),
  _gpu('h100', 'H100', 989e12, 80, 3350e9, 450e9, 50e9),
  Chip(name='gh200', kind='GH200', flops=989e12),
  _gpu('h200', 'H200', 989e12, 141, 4800e9, 450e9, 50e9),
  Chip(name='gb200', kind='GB200', flops=2500e12),
  _gpu('b200', 'B200', 2250e12, 180, 7700e9, 900e9, 50e9),
)


def of_device(device_kind: str) -> Chip | None:
  """Returns the chip of a `device.device_kind`; None when it isn't listed."""
  return next(
    (c for c in CHIPS if re.search(rf'\b{c.kind}(?!\d)', device_kind)), None
  )


def named(name: str) -> Chip | None:
  """Returns the chip of that name, if a run can be planned for it."""
  return next((c for c in CHIPS if c.name == name and c.is_planned), None)
