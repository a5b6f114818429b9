"""Searches for the fastest way to run a config on some hardware.

    best, tried = search.fastest(config, 8, lambda config: planner.plan(...))

It varies the mesh, what is kept for the backward pass (`model.remat`) and the
number of microbatches (`optim.accumulate`). More microbatches only add traffic,
so for each mesh and policy the fewest that fit are taken; and a policy that
recomputes more is not tried where one that fits in one part recomputes less.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from vit22b_jax import errors
from vit22b_jax.models import remat as remat_lib
from vit22b_jax.runtime import sharding

Plan = dict[str, Any]
Make = Callable[[ConfigDict], Plan]

_TENSOR = (1, 2, 4)
_REPLICAS = (1, 8)  # of groups that hold the model once; and all devices


def fastest(
  config: ConfigDict, devices: int, make: Make
) -> tuple[Plan | None, list[Plan]]:
  """Returns the plan with the shortest step that fits, and all plans.

  `make` plans a config for so many devices; the batch stays as it is.

  Raises:
    UserError: nothing could be planned at all, with the last reason.
  """
  if config.task != 'classification':
    raise errors.UserError(
      '--search varies what classifiers alone have (model.remat, '
      'optim.accumulate): plan this config without it.'
    )
  tried, reason = [], None
  for mesh in meshes(config, devices):
    for remat in remat_lib.REMAT:
      try:
        for plan in _fewest(config, mesh, remat, make):
          tried.append(plan)
      except errors.UserError as error:
        reason = error
        break
      if plan['fits'] and plan['config']['optim']['accumulate'] == 1:
        break
  if not tried:
    raise reason

  def seconds(plan):  # those without a prediction come last
    return plan['predicted_step_seconds'] or math.inf

  fitting = [plan for plan in tried if plan['fits']]
  return min(fitting, key=seconds, default=None), tried


def largest(plan: Plan, make: Make) -> Plan:
  """Doubles a plan's batch, with as many microbatches, until it doesn't fit.

  Returns:
    `largest_batch_size` that fits, and `next_batch_bytes_per_device`: what
    twice that would need, if there are so many images. Nothing of a plan that
    doesn't fit itself.
  """
  found = {}
  while plan['fits']:
    found = {'largest_batch_size': plan['batch_size']}
    doubled = ConfigDict(plan['config'])
    doubled.batch_size *= 2
    try:
      plan = make(doubled)
    except errors.UserError:
      return found  # more than there are images
    found['next_batch_bytes_per_device'] = plan['hbm_bytes_per_device']
  return found


def meshes(config: ConfigDict, devices: int) -> list[dict[str, int]]:
  """Returns sizes of mesh axes to try: the config's, and others.

  Heads are split or not; the model is held once, by eight groups or by each
  device.
  """
  found = []
  with contextlib.suppress(errors.UserError):  # a mesh for other hardware
    own = sharding.mesh_options(config)
    found.append(sharding.mesh_shape(count=devices, **own))
  for tensor in _TENSOR:
    for replicas in (*_REPLICAS, devices // tensor):
      if replicas and devices % (tensor * replicas) == 0:
        shape = (replicas, devices // (tensor * replicas), tensor)
        mesh = dict(zip(sharding.AXES, shape, strict=True))
        if mesh not in found:
          found.append(mesh)
  return found


def _fewest(
  config: ConfigDict, mesh: dict[str, int], remat: str, make: Make
) -> Iterator[Plan]:
  """Yields plans with ever more microbatches, up to the first that fits.

  How much is missing says how many to try next.
  """
  ways = mesh[sharding.DATA] * mesh[sharding.FSDP]
  parts = 1
  while True:
    candidate = config.copy_and_resolve_references()
    candidate.mesh.update(mesh)
    candidate.model.remat = remat
    candidate.optim.accumulate = parts
    yield (plan := make(candidate))
    if plan['fits'] or config.batch_size % (2 * parts * ways):
      return
    factor = plan['hbm_bytes_per_device'] / plan['hbm_capacity_bytes']
    doublings = max(math.floor(math.log2(factor)), 1) if factor > 1 else 1
    while config.batch_size % (2**doublings * parts * ways):
      doublings -= 1
    parts *= 2**doublings
