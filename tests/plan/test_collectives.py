"""What crosses the wires in one block's forward pass, as it was compiled.

Over `tensor`: the normed tokens in, the products' sums out. Over `fsdp`:
weights, in the compute dtype.
"""

import importlib.util

import flax.linen as nn
import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.models import test_blocks
from vit22b_jax.models import kernels
from vit22b_jax.plan import collectives, hlo, topologies
from vit22b_jax.runtime import sharding

B, L, D, N, K, F = 8, 256, 512, 4, 128, 2048
IN, OUT = 'all-gather', 'reduce-scatter'


def crossing(preset, devices, dtype):
  """Kind and bytes of what a block's forward pass sends, by mesh axis."""
  mesh = sharding.make_mesh('fsdp+tensor', devices=devices)
  block = test_blocks.make(
    preset, width=D, num_heads=N, mlp_dim=F, dtype=dtype, precision='default'
  )
  tokens = PartitionSpec(('data', 'fsdp'), 'tensor')
  x = jax.ShapeDtypeStruct(
    (B, L, D), dtype, sharding=NamedSharding(mesh, tokens)
  )
  boxed = jax.eval_shape(block.init, jax.random.key(0), x)
  params = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    nn.unbox(boxed),
    sharding.param_shardings(boxed, mesh),
  )
  with sharding.mesh_context(mesh):
    forward = jax.jit(
      lambda p, x: block.apply(p, x)[0], out_shardings=x.sharding
    )
    compiled = topologies.compile_for(
      mesh.devices.flat[0], forward.lower(params, x)
    )
  found = {}
  module = hlo.parse(compiled.as_text())
  for c in collectives.find(module, dict(mesh.shape)):
    found.setdefault(c.axes, []).append((c.kind, c.bytes))
  return {axes: sorted(sent) for axes, sent in found.items()}


def weights(*sizes, itemsize):
  """Gathers of kernels of so many elements, half of which a device needs."""
  return sorted((IN, size // 2 * itemsize) for size in sizes)


def expected(preset, itemsize):
  """Tokens in, tokens out, and which weights."""
  tokens = B // 4 * L * D * itemsize
  if preset == 'vit':
    sizes = 3 * D * D, D * D, D * F, F * D
    return [(IN, tokens)] * 2, [tokens] * 2, weights(*sizes, itemsize=itemsize)
  sizes = [D * (3 * D + F), (D + F) * D]
  if preset == 'vit22b_mlp_norm':
    sizes = [sizes[0], D * D, F * D]
  outs = [tokens] * (2 if preset == 'vit22b_mlp_norm' else 1)
  return [(IN, tokens)], outs, weights(*sizes, itemsize=itemsize)


@pytest.mark.parametrize('preset', ['vit22b', 'vit22b_mlp_norm'])
def test_simulated_devices(preset, monkeypatch):
  """A CPU's reduce-scatter is an all-reduce of which each keeps its part."""
  monkeypatch.setenv(kernels.VARIABLE, 'reference')
  found = crossing(preset, jax.devices(), 'float32')
  ins, outs, gathered = expected(preset, 4)
  assert found.pop(('fsdp',)) == gathered
  sent = found.pop(('tensor',))
  assert [s for s in sent if s[0] == IN] == ins
  sums = [size for kind, size in sent if kind == 'all-reduce']
  assert sum(sums) == sum(outs) and len(sums) <= len(outs)
  assert len(sent) == len(ins) + len(sums) and not found


@pytest.mark.slow
@pytest.mark.parametrize('preset', ['vit', 'vit22b', 'vit22b_mlp_norm'])
def test_tpu(preset, monkeypatch):
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip("libtpu, the compiler for TPUs: pip install '.[tpu]'")
  monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  devices = topologies.find('v5e:2x4').devices
  found = crossing(preset, devices, 'bfloat16')
  ins, outs, gathered = expected(preset, 2)
  assert found.pop(('fsdp',)) == gathered
  sent = found.pop(('tensor',))
  assert [s for s in sent if s[0] == IN] == ins
  # Several of one time may be combined into one.
  sums = [size for kind, size in sent if kind == OUT]
  assert sum(sums) == sum(outs) and len(sums) <= len(outs)
  assert len(sent) == len(ins) + len(sums) and not found
