"""Plans a run on hardware that needn't be at hand: does it fit, how fast is it?

    plan.run(config, 'runs/x', 'v4:8x8x16', search=False)

It writes WORKDIR/plan.json and prints it in words.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from vit22b_jax.plan import planner, rendering, topologies
from vit22b_jax.plan import search as search_lib
from vit22b_jax.runtime import console, workdir

PLAN = 'plan.json'
_SHORT = (
  *('mesh', 'fits', 'hbm_bytes_per_device', 'compile_seconds'),
  *('predicted_step_seconds', 'predicted_mfu_no_overlap'),
  'predicted_mfu_overlap',
)


def run(
  config: ConfigDict,
  path: str,
  topology: str,
  search: bool,
  efficiency: float = 1.0,
) -> int:
  """Plans a config on hardware by name, into the folder `path`.

  `search` looks for the fastest way to run it: over mesh, rematerialization and
  microbatches. `efficiency` is that of `planner.plan`.

  Returns:
    The process's exit code, 0: that a run doesn't fit is an answer.

  Raises:
    UserError: an unknown topology, or one that mesh or batch don't suit.
  """
  hardware = topologies.find(topology)
  folder = workdir.Workdir(path, writer=jax.process_index() == 0)
  if search:
    chosen = _searched(config, hardware, efficiency)
  else:
    chosen = planner.plan(config, hardware, efficiency=efficiency)
  folder.write_json(PLAN, chosen)
  console.say(rendering.render(chosen))
  console.say(f'Wrote {folder.path / PLAN}')
  return 0


def _searched(
  config: ConfigDict, hardware: topologies.Topology, efficiency: float
) -> dict[str, Any]:
  """Returns the fastest plan that fits, or the one closest to fitting."""

  def make(config):
    found = planner.plan(config, hardware, efficiency=efficiency)
    console.say(rendering.line(found))
    return found

  found, tried = search_lib.fastest(config, len(hardware.devices), make)
  if found is None:
    found = min(tried, key=lambda plan: plan['hbm_bytes_per_device'])
  else:
    console.say('\nThe fastest, with twice the batch:')
    found |= search_lib.largest(found, make)
  console.say(f'\n{rendering.choices(tried)}\n')
  return {**found, 'tried': [_short(p) for p in tried]}


def _short(plan: dict[str, Any]) -> dict[str, Any]:
  """Returns a few keys of a plan of a search."""
  config = plan['config']
  return {
    'remat': config['model']['remat'],
    'accumulate': config['optim']['accumulate'],
    **{key: plan[key] for key in _SHORT},
  }
