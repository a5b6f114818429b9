"""Programs that run once in a test: compiled fast rather than to run fast.

compiled = quick.jit(function)
"""

import functools

import jax

# On a CPU, compiling a generator takes a third of the time without LLVM's
# optimizations; what is computed stays, but for rounding.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
