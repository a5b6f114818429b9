"""Finds the largest learning rate that doesn't explode, and what moves it.

    python main.py --mode=probe --config=configs/cifar10_vit22b_s.py

Short runs (trials) from the config's seed see the same batches and stop at an
explosion. Rates double until one explodes and are then bisected; each switch of
`trials.SWITCHES`, flipped alone, gets a search of its own. A trial is kept in
WORKDIR/probe.json as soon as it ends, so a stopped probe goes on.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vit22b_jax import config as config_lib
from vit22b_jax import errors
from vit22b_jax.modes import trials
from vit22b_jax.report import probe_page
from vit22b_jax.runtime import console, runs
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import classification

STEPS = 150  # of a trial: the early explosions of Figure 1 came within 62
LATE_STEPS = 450  # of the check for late explosions
RATIO = 2**0.5  # neighboring rates of a finished search
LOWEST, HIGHEST = 1e-8, 1e2


class TimeIsUp(Exception):
  """The minutes are over; what was found is kept."""


def run(
  config: ConfigDict,
  workdir: epath.PathLike,
  mesh: jax.sharding.Mesh,
  minutes: float,
) -> int:
  """Searches the rates of a classifier's config and of its switches.

  Args:
    config: a classifier's.
    workdir: where probe.json and probe.html go; one that holds trials of the
      same config goes on with them.
    mesh: where arrays live.
    minutes: after which no further trial begins.

  Returns:
    The exit code, 0.

  Raises:
    UserError: the config is no classifier's, or the folder holds a probe of
      another one.
  """
  if config.task != 'classification':
    raise errors.UserError(
      f'--mode=probe searches learning rates of classifiers, and task is '
      f'{config.task!r}.'
    )
  if jax.process_count() > 1:
    raise errors.UserError('--mode=probe runs in one process: start only one.')
  folder = workdir_lib.Workdir(workdir)
  probe = Probe(
    config,
    mesh,
    classification.Classification.load_data(config),
    folder,
    _open(folder, config),
    time.monotonic() + 60 * minutes,
  )
  try:
    for switch in ('', *trials.SWITCHES):
      probe.search_switch(switch)
    probe.check_ends()
    console.say('Every search is finished.')
  except TimeIsUp:
    console.say(
      f'{minutes:g} minutes are over; the same command goes on from here.'
    )
  console.say(f'{table(probe.record)}\n{probe.record["advice"]}')
  if probe.record['switches']:
    console.say(f'Page: {probe_page.write(folder.path)}')
  return 0


@dataclasses.dataclass
class Probe:
  """Searches the rates of one config and its switches.

  Attributes:
    config: a classifier's.
    mesh: where arrays live.
    data: the config's data set.
    folder: where probe.json goes.
    record: its content.
    deadline: by the monotonic clock; no trial begins after it.
  """

  config: ConfigDict
  mesh: jax.sharding.Mesh
  data: Any
  folder: workdir_lib.Workdir
  record: dict[str, Any]
  deadline: float

  def search_switch(self, switch: str) -> None:
    """Searches one program, and keeps its bounds and the advice."""
    switches = self.record['switches']
    try:
      flipped, value = trials.flip(self.config, switch)
      program = trials.Program(flipped, self.mesh, self.data)
    except errors.UserError as error:
      console.say(f'{switch} stays as it is: {error}')
      return
    start = switches.get('', {}).get('explodes_at')
    stable, explodes = search(
      lambda rate: self.try_rate(program, switch, rate, STEPS),
      start or self.config.optim.learning_rate,
    )
    switches[switch] = {
      'value': value,
      'stable_at': stable,
      'explodes_at': explodes,
    }
    self.record['advice'] = advice(self.record)
    self.folder.write_json(workdir_lib.PROBE, self.record)
    console.say(table(self.record).splitlines()[-1])

  def check_ends(self) -> None:
    """Tells a transient from an explosion that lasts, and looks for late ones.

    The lowest exploding rate goes on past its explosion; the largest stable one
    goes on for LATE_STEPS.
    """
    bounds = self.record['switches']['']
    program = trials.Program(
      trials.flip(self.config, '')[0], self.mesh, self.data
    )
    for key, steps in (('explodes_at', STEPS), ('stable_at', LATE_STEPS)):
      if bounds[key] is not None:
        self.try_rate(program, '', bounds[key], steps, stop=False)

  def try_rate(
    self,
    program: trials.Program,
    switch: str,
    rate: float,
    steps: int,
    *,
    stop: bool = True,
  ) -> trials.Trial:
    """Returns the trial from the record, or runs and keeps it.

    Raises:
      TimeIsUp: it would have to run after the deadline.
    """
    name = f'{switch or "unchanged"} {rate:.6g} {steps}{"" if stop else " on"}'
    kept = self.record['trials']
    if name in kept:
      return kept[name]
    if time.monotonic() > self.deadline:
      raise TimeIsUp
    started = time.monotonic()
    trial = {'switch': switch, **program.trial(rate, steps, stop)}
    kept[name] = trial | {'seconds': round(time.monotonic() - started, 1)}
    self.folder.write_json(workdir_lib.PROBE, self.record)
    console.say(f'  {switch or "unchanged"} at {rate:.3g}: {outcome(trial)}')
    return kept[name]


def search(
  try_rate: Callable[[float], trials.Trial], start: float
) -> tuple[float | None, float | None]:
  """Finds neighboring rates of which only the larger explodes.

  Args:
    try_rate: trains at a rate.
    start: the first rate; doubled while it's stable, else halved.

  Returns:
    The largest stable and the lowest exploding rate, at most RATIO apart; None
    for one that isn't within LOWEST and HIGHEST.
  """
  stable = explodes = None
  rate = start
  while LOWEST <= rate <= HIGHEST and (stable is None or explodes is None):
    if try_rate(rate)['exploded'] is None:
      stable, rate = rate, rate * 2
    else:
      explodes, rate = rate, rate / 2
  while stable and explodes and explodes / stable > RATIO * 1.001:
    middle = (stable * explodes) ** 0.5
    if try_rate(middle)['exploded'] is None:
      stable = middle
    else:
      explodes = middle
  return stable, explodes


def outcome(trial: trials.Trial) -> str:
  """Says in a few words what a trial did."""
  if trial['exploded'] is None:
    return f'stable, last loss {trial["last_loss"]:.3f}'
  where = f' in {trial["layer"]}' if trial['layer'] else ''
  after = ', recovered' if trial['recovered'] else ''
  first = trial['moved_first'] or 'nothing before'
  return (
    f'explodes at step {trial["exploded"]}{after}; first to move: '
    f'{first}{where}'
  )


def advice(record: dict[str, Any]) -> str:
  """Says what the config tolerates, where it learns, and what allows more.

  >>> stable = {'switch': '', 'exploded': None, 'steps': STEPS}
  >>> advice({
  ...   'switches': {
  ...     '': {'stable_at': 0.004},
  ...     'model.pre_norm': {'value': True, 'stable_at': 0.016},
  ...   },
  ...   'trials': {
  ...     'a': {**stable, 'rate': 0.001, 'last_loss': 1.8},
  ...     'b': {**stable, 'rate': 0.004, 'last_loss': 2.2},
  ...   },
  ... })
  'Tolerates a learning rate of 0.004 and learned best at 0.001; model.pre_norm=True would allow 0.016.'
  """  # noqa: E501
  switches = record['switches']
  rate = switches['']['stable_at']
  text = f'Explodes at every learning rate from {LOWEST:g} on'
  if rate is not None:
    stable = [
      (trial['last_loss'], trial['rate'])
      for trial in record['trials'].values()
      if not trial['switch']
      and trial['exploded'] is None
      and trial['steps'] == STEPS
    ]
    best = min(stable)[1]
    text = (
      f'Tolerates a learning rate of {rate:.3g} and learned best at {best:.3g}'
    )
  better = [
    (found['stable_at'], f'{switch}={found["value"]!r}')
    for switch, found in switches.items()
    if switch and found['stable_at'] and found['stable_at'] > (rate or 0)
  ]
  if not better:
    return f'{text}; no switch that was tried allows more.'
  allowed, change = max(better)
  return f'{text}; {change} would allow {allowed:.3g}.'


def table(record: dict[str, Any]) -> str:
  """Returns a line for each program that was searched."""
  return '\n'.join(
    f'{row["switch"]:28}{row["stable"]:>12}{row["explodes"]:>12}'
    f'{row["times"]:>8}  {row["first"]}'
    for row in (probe_page.TITLES, *probe_page.rows(record))
  )


def _open(folder: workdir_lib.Workdir, config: ConfigDict) -> dict[str, Any]:
  """Returns the record of probe.json, or a new one.

  Raises:
    UserError: it can't be read, or is of another config.
  """
  mine = json.loads(config_lib.to_json(config))
  record = runs.read_probe(folder.path)
  if record is None:
    return {'config': mine, 'trials': {}, 'switches': {}, 'advice': ''}
  config_lib.compare(record['config'], mine, folder.path)
  return record
