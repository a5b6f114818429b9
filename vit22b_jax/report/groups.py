"""Runs that repeat each other with other seeds, and what sets groups apart.

for group in groups.of(runs):
  print(group.name, [member.name for member in group.members])
groups.differences(groups.of(runs))
"""

import dataclasses
import os
import re
from typing import Any, NamedTuple

from vit22b_jax.report import workdir

# Keys that say where and how a run works, not what it computes and measures;
# a name with a dot at its end stands for a section.
ASIDE = (
  'seed',
  'profile',
  'sharding',
  'checkpoint.',
  'log.',
  'mesh.',
  'data.cache_max_gb',
  'data.dir',
  'data.max_corrupt',
  'data.workers',
  'diagnostics.per_layer',
  'eval.batch_size',
  'fid.batch_size',
  'model.remat',
  'model.scan_layers',
)


class Member(NamedTuple):
  """A run on the page.

  Attributes:
    run: what its workdir holds.
    name: unlike that of any other run.
    anchor: its id in the page.
  """

  run: workdir.Run
  name: str
  anchor: str


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs whose configs say the same but for ASIDE.

  Attributes:
    name: unlike that of any other group.
    members: in the order given; at least one.
    choices: what their configs say: key -> value.
  """

  name: str
  members: list[Member]
  choices: dict[str, Any]

  @property
  def evaluated(self) -> list[Member]:
    """Those with a final evaluation, the first of each seed.

    A seed that ran twice tells nothing new: it gives the same numbers.
    """
    found: dict[Any, Member] = {}
    for member in self.members:
      if member.run.evaluation:
        found.setdefault(member.run.config.get('seed'), member)
    return list(found.values())

  @property
  def repeated(self) -> list[Any]:
    """Seeds of more than one member."""
    seeds = [member.run.config.get('seed') for member in self.members]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1}, key=str)


def of(runs: list[workdir.Run]) -> list[Group]:
  """The groups, in the order of their first runs."""
  members: list[tuple[dict[str, Any], list[Member]]] = []
  for member in named(runs):
    choices = _choices(member.run)
    for known, found in members:
      if known == choices:
        found.append(member)
        break
    else:
      members.append((choices, [member]))
  names = _unlike([_common(found) for _, found in members])
  return [
    Group(name, found, choices)
    for name, (choices, found) in zip(names, members, strict=True)
  ]


def named(runs: list[workdir.Run]) -> list[Member]:
  """Runs under their folders' names, with parent folders where these repeat.

  Args:
    runs: of absolute paths.
  """
  parts = [run.path.parts for run in runs]
  lengths = [1] * len(runs)
  while True:
    names = ['/'.join(p[-n:]) for p, n in zip(parts, lengths, strict=True)]
    longer = [
      n + 1 if names.count(name) > 1 and n < len(p) else n
      for name, p, n in zip(names, parts, lengths, strict=True)
    ]
    if longer == lengths:
      break
    lengths = longer
  anchors = _unlike([re.sub(r'[^\w.-]+', '-', f'run-{n}') for n in names])
  return [Member(*found) for found in zip(runs, names, anchors, strict=True)]


def differences(groups: list[Group]) -> dict[str, list[str]]:
  """Keys whose values differ: key -> the text of each group's value.

  'preset' stands for a None: what the block, the variant or the optimiser has.
  """
  keys = sorted({key for group in groups for key in group.choices})
  return {
    key: [_shown(group, key) for group in groups]
    for key in keys
    if any(g.choices.get(key) != groups[0].choices.get(key) for g in groups)
  }


def aside(runs: list[workdir.Run]) -> list[str]:
  """Keys of ASIDE, but for the seed, whose values differ between runs."""
  configs = [_set(run) for run in runs]
  keys = sorted({key for config in configs for key in config})
  return [
    key
    for key in keys
    if _is_aside(key)
    and key != 'seed'
    and any(config.get(key) != configs[0].get(key) for config in configs)
  ]


def _set(run: workdir.Run) -> dict[str, Any]:
  """Its config without the keys left to their defaults.

  So a key that came later than a run changes nothing while it isn't set.
  """
  flat = workdir.flatten(run.config)
  return {key: value for key, value in flat.items() if value is not None}


def _choices(run: workdir.Run) -> dict[str, Any]:
  return {k: value for k, value in _set(run).items() if not _is_aside(k)}


def _is_aside(key: str) -> bool:
  return any(
    key.startswith(name) if name.endswith('.') else key == name
    for name in ASIDE
  )


def _shown(group: Group, key: str) -> str:
  if key in group.choices:
    value = group.choices[key]
    return workdir.text(value) if value != '' else "''"
  known = workdir.flatten(group.members[0].run.config)
  return 'preset' if key in known else '–'


def _common(members: list[Member]) -> str:
  """What the names of a group's runs have in common, without the seed."""
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
  """Its name but for its own seed at the end: a of a_seed1, a_s1 and a_1."""
  seed = re.escape(str(member.run.config.get('seed')))
  end = rf'(^|[-_./])(seed[-_.=]*|s)?0*{seed}$'
  return re.sub(end, '', member.name)


def _unlike(names: list[str]) -> list[str]:
  """The names, with a number behind those that repeat an earlier one."""
  taken: list[str] = []
  for name in names:
    count, chosen = 1, name
    while chosen in taken:
      count += 1
      chosen = f'{name}-{count}'
    taken.append(chosen)
  return taken
