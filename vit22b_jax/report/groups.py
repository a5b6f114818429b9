"""Groups runs that differ in their seeds alone, and tells groups apart.

for group in groups.from_runs(several):
  print(group.name, [member.name for member in group.members])
groups.differences(groups.from_runs(several))
"""

import dataclasses
import functools
import itertools
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vit22b_jax import errors
from vit22b_jax.report import summary
from vit22b_jax.runtime import runs

# Keys that say where and how a run works, not what it computes and measures.
# A name with a dot at its end stands for a section.
NON_COMPARED_KEYS = (
  *('seed', 'profile', 'sharding', 'checkpoint.', 'log.', 'mesh.'),
  *('data.cache_max_gb', 'data.dir', 'data.max_corrupt', 'data.workers'),
  *('diagnostics.per_layer', 'eval.batch_size', 'fid.batch_size'),
  *('model.remat', 'model.scan_layers'),
)


class Member(NamedTuple):
  """A run on the page."""

  run: runs.Run
  name: str  # unlike that of any other run
  anchor: str  # its id in the page


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs, one at least, whose configs differ in NON_COMPARED_KEYS alone."""

  number: int  # its place on the page
  name: str  # unlike that of any other group
  members: list[Member]  # in the order given
  choices: dict[str, Any]  # by key, without NON_COMPARED_KEYS

  @property
  def evaluated(self) -> list[runs.Run]:
    """Returns runs with a final evaluation, the first of each seed.

    A seed that ran twice tells nothing new: it gives the same numbers.
    """
    found: dict[Any, runs.Run] = {}
    for run in (member.run for member in self.members):
      if run.evaluation:
        found.setdefault(run.config.get('seed'), run)
    return list(found.values())

  def alone(self, member: Member) -> 'Group':
    """Returns the group as if it had this member only."""
    return dataclasses.replace(self, members=[member])

  @property
  def repeated(self) -> list[Any]:
    """Returns seeds of more than one member."""
    seeds = [member.run.config.get('seed') for member in self.members]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1}, key=str)


class Band(NamedTuple):
  """Mean and range of runs at the steps where each has a finite value."""

  steps: Int[np.ndarray, 'points']
  mean: Float[np.ndarray, 'points']
  low: Float[np.ndarray, 'points']
  high: Float[np.ndarray, 'points']


def from_runs(several: list[runs.Run]) -> list[Group]:
  """Returns the groups, in the order of their first runs."""
  alike: dict[str, list[Member]] = {}
  for member in name_runs(several):
    chosen = _set_keys(member.run)
    chosen = {k: v for k, v in chosen.items() if not _is_not_compared(k)}
    alike.setdefault(json.dumps(chosen, sort_keys=True), []).append(member)
  names = _make_unique([_common_name(members) for members in alike.values()])
  return [
    Group(number, name, members, json.loads(choices))
    for number, (name, (choices, members)) in enumerate(
      zip(names, alike.items(), strict=True)
    )
  ]


def name_runs(several: list[runs.Run]) -> list[Member]:
  """Names runs by their folders, with parent folders where names repeat."""
  names, paths = [], [run.path.parts for run in several]
  for parts in paths:
    ends = [parts[-length:] for length in range(1, len(parts) + 1)]
    own = (e for e in ends if [p[-len(e) :] for p in paths].count(e) == 1)
    names.append(errors.printable('/'.join(next(own, parts))))
  anchors = _make_unique([re.sub(r'[^\w.-]+', '-', f'run-{n}') for n in names])
  return [Member(*found) for found in zip(several, names, anchors, strict=True)]


def differences(groups: list[Group]) -> dict[str, list[str]]:
  """Returns keys whose values differ, with the text of each group's value.

  'preset' stands for a None: the value of the block, variant or optimizer.
  """

  def shown(group, key):
    if key in group.choices:
      return summary.text(group.choices[key]) or "''"
    return 'preset' if key in group.members[0].run.choices else '–'

  keys = _differing([group.choices for group in groups])
  return {key: [shown(group, key) for group in groups] for key in keys}


def other_differences(several: list[runs.Run]) -> list[str]:
  """Returns NON_COMPARED_KEYS, but for the seed, that differ between runs."""
  keys = _differing([_set_keys(run) for run in several])
  return [key for key in keys if _is_not_compared(key) and key != 'seed']


def other_histories(groups: list[Group]) -> list[str]:
  """Returns names of runs whose learning rates differ from their group's first.

  A run that was trained in two parts of other lengths has other rates at the
  same steps, though its config says the same.
  """
  return [
    member.name
    for group in groups
    for member in group.members[1:]
    if not _same_rates(group.members[0].run, member.run)
  ]


def own_splits(several: list[runs.Run]) -> bool:
  """Returns whether seeds differ and each draws its own validation part."""
  seeds = {run.choices.get('seed') for run in several}
  drawn = all(run.choices.get('data.val_fraction') for run in several)
  own = any(run.choices.get('data.split_seed') is None for run in several)
  return len(seeds) > 1 and drawn and own


def band(series: list[runs.Series]) -> Band:
  """Returns mean and range where every run has a finite value."""
  finite = [(s[np.isfinite(v)], v[np.isfinite(v)]) for s, v in series]
  steps = functools.reduce(np.intersect1d, (s for s, _ in finite))
  values = np.array([v[np.searchsorted(s, steps)] for s, v in finite])
  return Band(steps, values.mean(0), values.min(0), values.max(0))


def _same_rates(one: runs.Run, other: runs.Run) -> bool:
  (steps, rates), (other_steps, other_rates) = (
    run.metric('train/learning_rate') for run in (one, other)
  )
  _, at, other_at = np.intersect1d(steps, other_steps, return_indices=True)
  return np.allclose(
    rates[at], other_rates[other_at], rtol=1e-3, atol=0, equal_nan=True
  )


def _differing(configs: list[dict[str, Any]]) -> list[str]:
  """Returns keys whose values aren't the same in all configs, sorted."""
  keys = sorted({key for config in configs for key in config})
  return [
    k for k in keys if any(c.get(k) != configs[0].get(k) for c in configs)
  ]


def _set_keys(run: runs.Run) -> dict[str, Any]:
  """Returns a config without the keys left to their defaults.

  So a key that came later than a run changes nothing while it isn't set.
  """
  return {k: value for k, value in run.choices.items() if value is not None}


def _is_not_compared(key: str) -> bool:
  section = f'{key.partition(".")[0]}.'
  return key in NON_COMPARED_KEYS or section in NON_COMPARED_KEYS


def _common_name(members: list[Member]) -> str:
  """Returns the common part of the names of a group's runs, without seeds."""
  names = [member.name for member in members]
  if len(names) == 1:
    return names[0]
  bare = {_without_seed(member) for member in members}
  if len(bare) == 1:
    shared = bare.pop()
  else:
    # Letter by letter is what is meant: these are no paths.
    shared = os.path.commonprefix(names)  # noqa: RUF071
    shared = shared if shared in names else shared.rstrip('-_./=')
  if not shared:  # seed_0, seed_1, ...: what their folder is called
    parents = {member.run.path.parent.name for member in members}
    shared = parents.pop() if len(parents) == 1 else ''
  return shared.strip('/') or f'{names[0]} and {len(names) - 1} more'


def _without_seed(member: Member) -> str:
  """Returns a name but for its own seed: a of a_seed1, a_s1 and a_1."""
  seed = re.escape(str(member.run.config.get('seed')))
  end = rf'(^|[-_./])(seed[-_.=]*|s)?0*{seed}$'
  return re.sub(end, '', member.name)


def _make_unique(names: list[str]) -> list[str]:
  """Returns the names, with a number behind those that repeat another."""
  taken: list[str] = []
  for name in names:
    others = (f'{name}-{number}' for number in itertools.count(2))
    found = itertools.chain([name], others)
    taken.append(next(chosen for chosen in found if chosen not in taken))
  return taken
