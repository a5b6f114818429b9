"""Which platform a trace is for: that of the mesh in context, if there is one.

    with sharding.use(mesh):  # of a TPU's topology, on a machine without any
      lowered = step.lower(state, batch)  # in a TPU's formulations

jax knows the mesh within jitted functions too, and traces them anew for each.
"""

import jax


def name() -> str:
  """'cpu', 'gpu' or 'tpu'; without a mesh, what jax runs on."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def on_cpu() -> bool:
  """Whether the trace is for a CPU."""
  return name() == 'cpu'
