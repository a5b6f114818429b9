"""Starts jax's backend, and tells the user of what it can't use.

backend.start()    # after `distributed.initialize`
"""

import os

import jax
from absl import logging

from vit22b_jax import errors
from vit22b_jax.runtime import host


def start() -> None:
  """Starts the backend that jax chooses, or JAX_PLATFORMS names.

  Warns of a GPU or TPU in the machine that jax has no plugin for.

  Raises:
    UserError: JAX_PLATFORMS names a platform that can't be started.
  """
  try:
    platform = jax.default_backend()
  except (RuntimeError, AssertionError) as error:
    named = os.environ.get('JAX_PLATFORMS', '')
    reason = str(error).strip().split('\n')[0] or 'no such device'
    raise errors.UserError(
      f"JAX_PLATFORMS={named}: jax can't start there ({reason[:300]}). "
      "Install its plugin (pip install '.[cuda12]', '.[cuda13]' or '.[tpu]'), "
      'or unset JAX_PLATFORMS to take what there is.'
    ) from error
  if text := host.unused_accelerator(platform):
    logging.warning('%s.', text)
  if platform == 'cpu' and jax.process_count() > 1:
    # Only process 0 has it on CPUs, and Gloo waits just 30 s for the others.
    jax.config.update('jax_enable_compilation_cache', False)
