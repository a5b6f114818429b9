"""Lists accelerators: peaks, memory and links, in one table.

    >>> chip = named('v4')
    >>> chip.flops / 1e12  # TFLOP/s of bfloat16 products
    275.0
    >>> chip.hbm_bytes / 2**30
    32.0

Sources. TPU: cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}; bandwidth
of a link: the interconnect table of jax-ml.github.io/scaling-book/tpus. NVIDIA:
data sheets and architecture white papers of each GPU, dense products without
sparsity that accumulate in float32, and float32 ones without tensor cores;
memory in units of 1e9 bytes as it is sold, which leaves the rest of a card (up
to 7 %) to driver and libraries; where error correction takes a part of that
(A10G, L4, L40S), 94 % of what nvidia-smi counts (23,028, 23,034 and 46,068
MiB); NVLink in one direction is half of the sheet's figure, cards without it
meet over PCIe x16; between nodes one 400 Gbit/s port for each GPU (200 for the
A100), as in the DGX systems.
"""

import dataclasses
import re

_GIB = 2**30
GPUS_PER_NODE = 8  # whose links are `link_bandwidth`


@dataclasses.dataclass(frozen=True)
class Chip:
  """Describes one jax device of a kind."""

  name: str  # as it is typed, such as 'v5e' or 'h100'
  kind: str  # a pattern for a part of jax's `device_kind`
  flops: float  # peak of dense bfloat16 products (V100, T4: float16), FLOP/s
  float32_flops: float = 0  # of a GPU's products without tensor cores, FLOP/s
  hbm_bytes: float = 0
  hbm_bandwidth: float = 0  # bytes/s
  # Of one link of a TPU's torus, or of a GPU to its node's switch; bytes/s in
  # one direction. 0 where a run can't be planned.
  link_bandwidth: float = 0
  network_bandwidth: float = 0  # of a GPU to other nodes, likewise
  torus: int = 0  # axes of a TPU slice; 0 for GPUs

  @property
  def is_planned(self) -> bool:
    """Tells whether enough is known of it to plan a run."""
    return self.link_bandwidth > 0


# The first whose `kind` is part of a device's kind counts, so longer ones come
# first. On TPU v2, v3 and 7x a device is one of a chip's two TensorCores.
CHIPS = (
  Chip('v2', 'TPU v2', 22.5e12),
  Chip('v3', 'TPU v3', 61.5e12),
  Chip('v4', 'TPU v4', 275e12, 0, 32 * _GIB, 1228e9, 45e9, torus=3),
  Chip('v5e', 'TPU v5( lite|e)', 197e12, 0, 16 * _GIB, 819e9, 45e9, torus=2),
  Chip('v5p', 'TPU v5', 459e12, 0, 95 * _GIB, 2765e9, 90e9, torus=3),
  Chip('v6e', 'TPU v6', 918e12, 0, 32 * _GIB, 1640e9, 90e9, torus=2),
  Chip('v7x', 'TPU7x', 1153.5e12),
  Chip('v100', 'V100', 125e12, 15.7e12),
  Chip('t4', 'T4', 65e12, 8.1e12),
  Chip('a100', 'A100', 312e12, 19.5e12, 80e9, 2039e9, 300e9, 25e9),
  Chip('a6000', 'RTX A6000', 155e12, 38.7e12, 48e9, 768e9, 25e9, 12.5e9),
  Chip('a10g', 'A10G', 70e12, 35e12, 22.7e9, 600e9, 25e9, 12.5e9),
  Chip('a10', 'A10', 125e12, 31.2e12),
  Chip('l40s', 'L40S', 362e12, 91.6e12, 45.4e9, 864e9, 25e9, 25e9),
  Chip('l40', 'L40', 181e12, 90.5e12),
  Chip('l4', 'L4', 121e12, 30.3e12, 22.7e9, 300e9, 25e9, 12.5e9),
  # Not their Ti, D and laptop forms.
  Chip('rtx3090', 'RTX 3090$', 71e12, 35.6e12, 24e9, 936e9, 25e9, 12.5e9),
  Chip('rtx4090', 'RTX 4090$', 165e12, 82.6e12, 24e9, 1008e9, 25e9, 12.5e9),
  Chip('rtx5090', 'RTX 5090$', 209e12, 104.8e12, 32e9, 1792e9, 50e9, 12.5e9),
  Chip('h100pcie', 'H100 PCIe', 756e12, 51e12),
  Chip('h100nvl', 'H100 NVL', 835e12, 60e12),
  Chip('h100', 'H100', 989e12, 66.9e12, 80e9, 3350e9, 450e9, 50e9),
  Chip('gh200', 'GH200', 989e12, 67e12),
  Chip('h200nvl', 'H200 NVL', 835e12, 60e12),
  Chip('h200', 'H200', 989e12, 66.9e12, 141e9, 4800e9, 450e9, 50e9),
  Chip('gb200', 'GB200', 2500e12, 90e12),
  Chip('b200', 'B200', 2250e12, 80e12, 180e9, 7700e9, 900e9, 50e9),
)


def of_device(device_kind: str) -> Chip | None:
  """Returns the chip of a `device.device_kind`; None when it isn't listed."""
  return next(
    (c for c in CHIPS if re.search(rf'\b{c.kind}(?!\d)', device_kind)), None
  )


def named(name: str) -> Chip | None:
  """Returns the chip of that name, if a run can be planned for it."""
  return next((c for c in CHIPS if c.name == name and c.is_planned), None)
