"""The platform that a trace is for follows the mesh in context."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh

from vit22b_jax.models import backend
from vit22b_jax.runtime import sharding


def test_the_mesh_in_context_decides():
  device = AbstractDevice(device_kind='TPU v4', num_cores=1, platform='tpu')
  tpus = AbstractMesh((2,), ('data',), abstract_device=device)

  @jax.jit  # traced anew for each mesh, also where a trace calls it
  def inner(x):
    return x if backend.on_cpu() else 2 * x

  def products():
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    return str(jax.make_jaxpr(inner)(x)).count('mul')

  assert backend.name() == 'cpu' and products() == 0
  with jax.sharding.use_abstract_mesh(tpus):
    assert backend.name() == 'tpu' and products() == 1
  with sharding.use(sharding.make_mesh()):
    assert backend.name() == 'cpu' and products() == 0
