"""Described GPUs: the table is whole, and XLA compiles for its cards."""

import re

import jax
import jax.numpy as jnp
import pytest

from vit22b_jax import errors
from vit22b_jax.plan import gpu_targets, topologies
from vit22b_jax.runtime import chips


def test_every_planned_gpu_is_a_card():
  planned = {c.name for c in chips.CHIPS if c.is_planned and not c.torus}
  assert set(gpu_targets.CARDS) == planned
  for name in gpu_targets.CARDS:
    kind = re.search('"NVIDIA (.*)"', gpu_targets.target_config(name)).group(1)
    assert chips.of_device(kind).name == name
    assert int(chips.named(name).hbm_bytes) > 20e9


@pytest.mark.parametrize(
  ('kind', 'flops', 'float32', 'gigabytes'),
  [
    ('NVIDIA H200 NVL', 835, 60, 0),  # no plans
    ('NVIDIA H200', 989, 66.9, 141),
    ('TPU v5e', 197, 0, 16 * 1.024**3),
    ('TPU v5 lite', 197, 0, 16 * 1.024**3),
    ('TPU v5p', 459, 0, 95 * 1.024**3),
    # 94 % of 23,034, 23,028 and 46,068 MiB.
    ('NVIDIA L4', 121, 30.3, 22.7),
    ('NVIDIA A10G', 70, 35, 22.7),
    ('NVIDIA L40S', 362, 91.6, 45.4),
  ],
)
def test_chips_by_the_name_that_jax_reports(kind, flops, float32, gigabytes):
  chip = chips.of_device(kind)
  assert chip.flops == flops * 1e12
  assert chip.float32_flops == pytest.approx(float32 * 1e12)
  assert chip.hbm_bytes == pytest.approx(gigabytes * 1e9)


def test_every_gpu_has_a_float32_peak():
  for chip in chips.CHIPS:
    assert (chip.float32_flops > 0) == ('TPU' not in chip.kind)
  # Two FLOPs a cycle of each unit that the cards are described by.
  for name, ((major, minor), cores, _, clock) in gpu_targets.CARDS.items():
    units = gpu_targets._CORES[major, minor][-1]
    peak = cores * units * 2 * clock * 1e9
    assert chips.named(name).float32_flops == pytest.approx(peak, rel=0.08)


def test_target_of_an_h100():
  text = gpu_targets.target_config('h100')
  found = dict(re.findall(r'(\w+): ([\d.]+)', text))
  assert found['core_count'] == '132'
  assert found['device_memory_size'] == '80000000000'
  assert found['shared_memory_per_core'] == str(228 * 1024)
  assert found['l2_cache_size'] == str(50 * 2**20)


@pytest.mark.parametrize('count', [9, 12, 20])
def test_nodes_that_are_not_full(count, monkeypatch):
  monkeypatch.setattr(gpu_targets, 'plugin_version', lambda: '0')
  message = f'h100:{count} is no whole number of nodes of 8'
  with pytest.raises(errors.UserError, match=message):
    gpu_targets.devices('h100', count)


def test_without_the_plugin_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(gpu_targets, 'plugin_version', lambda: None)
  with pytest.raises(errors.UserError, match=r"pip install '\.\[plan-gpu\]'"):
    gpu_targets.devices('h100', 8)


@pytest.mark.skipif(
  gpu_targets.plugin_version() is None, reason=gpu_targets.INSTALL
)
@pytest.mark.parametrize('name', ['h100', 'rtx4090'])
def test_compiles_a_product(name):
  devices = gpu_targets.devices(name, 16)
  assert [d.process_index for d in devices] == [0] * 8 + [1] * 8
  on_first = jax.sharding.SingleDeviceSharding(devices[0])
  x = jax.ShapeDtypeStruct((8, 64), jnp.bfloat16, sharding=on_first)
  w = jax.ShapeDtypeStruct((64, 32), jnp.bfloat16, sharding=on_first)
  compiled = topologies.compile_for(devices[0], jax.jit(jnp.matmul).lower(x, w))
  assert '__cublas$' in compiled.as_text()
  size = compiled.memory_analysis().argument_size_in_bytes
  assert size == 2 * (8 * 64 + 64 * 32)
