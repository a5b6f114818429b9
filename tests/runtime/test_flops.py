"""The published utilisation, sizes counted by hand, and peaks by name."""

import jax
import pytest

from vit22b_jax.models import generators, patchgan, resnet_generator
from vit22b_jax.runtime import flops


class Chip:
  """A device of which only the name matters."""

  platform = 'tpu or gpu'

  def __init__(self, device_kind):
    self.device_kind = device_kind


def test_the_published_utilisation_of_vit_22b():
  # Dehghani et al. 2023: 1,150 tokens/s on each TPU v4, 256 tokens an image.
  per_image = flops.training_flops(
    depth=48, width=6144, mlp_dim=24576, tokens=256
  )
  rate = per_image * 1150 / 256
  assert flops.mfu(rate, Chip('TPU v4'), 1) == pytest.approx(0.549, abs=5e-4)
  assert flops.mfu(8 * rate, Chip('TPU v4'), 8) == pytest.approx(
    0.549, abs=5e-4
  )


def test_flops_are_those_of_the_forward_products_times_three():
  depth, width, mlp_dim, tokens = 3, 10, 14, 7
  projections = 4 * 2 * tokens * width * width  # q, k, v and the output
  mlp = 2 * 2 * tokens * width * mlp_dim
  attention = 2 * 2 * tokens * tokens * width  # q k^T and a v, all heads
  assert flops.training_flops(
    depth=depth, width=width, mlp_dim=mlp_dim, tokens=tokens
  ) == 3 * depth * (projections + mlp + attention)


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA A10G', 70e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA GB200', 2500e12),
    ('NVIDIA B200', 2250e12),
    ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', 362e12),
    ('Tesla T4', 65e12),
  ],
)
def test_peaks_by_the_name_that_jax_reports(kind, expected):
  assert flops.peak(Chip(kind)) == expected


def test_a_cpu_is_timed_and_its_simulated_devices_share_it():
  device = jax.devices()[0]
  whole = flops.peak(device) * jax.device_count()
  assert 1e8 < whole < 1e14
  assert flops.mfu(whole / 2, device, jax.device_count()) == pytest.approx(0.5)


def test_image_flops_of_cyclegans_networks_by_hand():
  full, half, quarter = 256**2, 128**2, 64**2
  ends = 2 * full * 7 * 7 * 3 * 64
  halvings = half * 9 * 64 * 128 + quarter * 9 * 128 * 256
  blocks = 9 * 2 * quarter * 9 * 256 * 256
  # A transposed convolution spreads the pixels that it is given.
  expected = 2 * (ends + 2 * halvings + blocks)
  model = resnet_generator.ResNetGenerator(blocks=9)
  assert flops.image_flops(model, (256, 256)) == expected
  sides, channels = (128, 64, 32, 31, 30), (3, 64, 128, 256, 512, 1)
  products = zip(sides, channels[:-1], channels[1:], strict=True)
  expected = 2 * sum(n * n * 16 * i * o for n, i, o in products)
  model = patchgan.build('patchgan70')
  assert flops.image_flops(model, (256, 256)) == expected


def test_image_flops_of_a_vitunet_count_its_blocks_and_its_convolutions():
  fields = {'width': 48, 'mlp_dim': 96, 'num_heads': 2, 'depth': 6}
  model = generators.build_vitunet(
    'vit', 'S', image_size=24, patch_size=4, **fields
  )
  stages = zip((1, 2, 4, 8, 4, 2, 1), (1, 1, 1, 1, 2, 3, 4), strict=True)
  expected = sum(
    flops.training_flops(
      depth=1, width=48 // part, mlp_dim=96 // part, tokens=36 * sets
    )
    / 3
    for part, sets in stages
  )
  channels = 12 * 64 + 64 * 128 + 2 * 2 * 128 * 128 + 128 * 64 + 64 * 3
  expected += 2 * 24 * 24 * 9 * channels
  assert flops.image_flops(model, (24, 24)) == pytest.approx(expected)
