"""Plans a run on hardware that needn't be at hand: does it fit, how fast is it?

    plan.run(config, 'runs/x', 'v4:8x8x16', search=False)

It writes WORKDIR/plan.json and prints it in words.
"""

from typing import Any

import jax
from ml_collections import config_dict

from vit22b_jax.plan import planner, table, topologies
from vit22b_jax.plan import search as search_lib
from vit22b_jax.runtime import console, workdir

PLAN = 'plan.json'


def run(
  config: Any,
  path: str,
  topology: str,
  search: bool,
  efficiency: float = 1.0,
) -> int:
  """Plans a config, or looks for the fastest way to run it.

  Args:
    config: the run's configuration.
    path: the folder for plan.json.
    topology: hardware by name, see `topologies`.
    search: whether to vary mesh, rematerialisation and microbatches.
    efficiency: part of the peak that matrix products are taken to reach.

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
  console.say(table.render(chosen))
  console.say(f'Wrote {folder.path / PLAN}')
  return 0


def _searched(
  config: Any, hardware: topologies.Topology, efficiency: float
) -> dict[str, Any]:
  """The fastest plan that fits, or the one that is closest to fitting."""

  def tell(plan):
    console.say(table.line(plan))

  options = {'efficiency': efficiency, 'tell': tell}
  found, tried = search_lib.fastest(config, hardware, **options)
  if found is None:
    found = min(tried, key=lambda plan: plan['hbm_bytes_per_device'])
  else:
    best = config_dict.ConfigDict(found['config'])
    console.say('\nThe fastest, with twice the batch:')
    found |= search_lib.largest(found, best, hardware, **options)
  console.say('')
  return {**found, 'tried': [_short(p) for p in tried]}


_SHORT = (
  'mesh',
  'fits',
  'hbm_bytes_per_device',
  'compile_seconds',
  'predicted_step_seconds',
  'predicted_mfu_no_overlap',
  'predicted_mfu_overlap',
)


def _short(plan: dict[str, Any]) -> dict[str, Any]:
  """A plan of a search in a few keys."""
  return {
    'remat': plan['config']['model'].get('remat'),
    'accumulate': plan['config']['optim'].get('accumulate'),
    **{key: plan[key] for key in _SHORT},
  }
