"""Finds the largest learning rate that doesn't explode, and what moves it.

    python main.py --mode=probe --config=configs/cifar10_vit22b_s.py

Short runs (trials) start from the config's seed, or from the weights of
`init_from`, see the same batches and stop at an explosion. Rates double until
one explodes and are then bisected; each switch of `trials.SWITCHES`, flipped
alone, gets a search of its own. A trial is kept in WORKDIR/probe.json as soon
as it ends, so a stopped probe goes on.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vit22b_jax import config as config_lib
from vit22b_jax import errors
from vit22b_jax.modes import trials
from vit22b_jax.report import page
from vit22b_jax.runtime import console, formats, lock, runs
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import classification
from vit22b_jax.weights import initial

STEPS = 150  # of a trial: Figure 1's early explosions came within half of it
LATE_STEPS = 450  # of the check for late explosions
RATIO = 2**0.5  # neighboring rates of a finished search
LOWEST, HIGHEST = 1e-8, 1e2
# Keys that a resumed run may change, and that a trial's outcome depends on.
_DECISIVE = (
  *('duration', 'data.name'),
  *('diagnostics.max_logit', 'diagnostics.max_abs_grad'),
)


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
  with lock.held(folder.path):
    if config.init_from:
      initial.validate(config.init_from, config.task)
    record = _open(folder, config)
    data = classification.Classification.load_data(config)
    deadline = time.monotonic() + 60 * minutes
    probe = Probe(config, mesh, data, folder, record, deadline)
    console.say(
      f'Trials of {STEPS} steps; each switch is flipped alone. The record is '
      f'{folder.path / workdir_lib.PROBE}.'
    )
    try:
      for switch in ('', *trials.SWITCHES):
        probe.search_switch(switch)
      console.say('Every search is finished.')
    except TimeIsUp:
      console.say(
        f'{minutes:g} minutes are over; the same command goes on from here.'
      )
  if record['switches']:
    console.say(f'{table(record)}\n{record["advice"]}')
    console.say(f'Page: {page.write_probe(folder.path, record)}')
  return 0


@dataclasses.dataclass
class Probe:
  """Searches the rates of one config and its switches."""

  config: ConfigDict
  mesh: jax.sharding.Mesh
  data: Any
  folder: workdir_lib.Workdir
  record: dict[str, Any]  # the content of probe.json
  deadline: float  # by the monotonic clock; no trial begins after it

  def search_switch(self, switch: str) -> None:
    """Searches one program; of the unchanged one, looks beyond the bounds."""
    try:
      flipped, value = trials.flip(self.config, switch)
      program = trials.Program(flipped, self.mesh, self.data)
    except errors.UserError as error:
      if not switch:
        raise
      console.say(f'{switch} stays as it is: {error}')
      return
    try_rate = functools.partial(self.try_rate, program, switch, value)
    start = self.config.optim.learning_rate
    if switch:
      start = self.record['switches']['']['explodes_at'] or start
    while rate := next_rate(*bounds(self.record, switch), start):
      try_rate(rate)
    if not switch:
      stable, explodes = bounds(self.record, switch)
      if explodes:  # a transient?
        try_rate(explodes, stop=False)
      late = functools.partial(try_rate, steps=LATE_STEPS)
      while (stable or 0) >= LOWEST and late(stable)['exploded']:
        stable /= RATIO
    console.say(table(self.record).splitlines()[-1])

  def try_rate(
    self,
    program: trials.Program,
    switch: str,
    value: Any,
    rate: float,
    steps: int | None = None,
    *,
    stop: bool = True,
  ) -> trials.Trial:
    """Returns the trial from the record, or runs and keeps it.

    Raises:
      TimeIsUp: it would have to run after the deadline.
    """
    shown, steps = switch or 'unchanged', steps or STEPS
    name = f'{shown} {rate:.6g} {steps}{"" if stop else " on"}'
    kept = self.record['trials']
    if name in kept:
      return kept[name]
    started = time.monotonic()
    if started > self.deadline:
      raise TimeIsUp
    trial = {'switch': switch, **program.trial(rate, steps, stop)}
    kept[name] = trial | {'seconds': round(time.monotonic() - started, 1)}
    stable, explodes = bounds(self.record, switch)
    self.record['switches'][switch] = {
      'value': value,
      'stable_at': stable,
      'explodes_at': explodes,
    }
    self.record['advice'] = advice(self.record)
    self.folder.write_json(workdir_lib.PROBE, self.record)
    console.say(f'  {shown} at {rate:.3g}: {outcome(trial)}')
    return trial


def next_rate(
  stable: float | None, explodes: float | None, start: float
) -> float | None:
  """Returns the rate to try next; None where the search is over.

  Rates double, or halve, until one is stable and one explodes, and are then
  bisected until these are at most RATIO apart.

  `stable` is the largest stable rate so far, `explodes` the lowest exploding
  one, `start` the first to try.
  """
  if stable and explodes:
    done = explodes / stable < RATIO * 1.001
    return None if done else (stable * explodes) ** 0.5
  rate = stable * 2 if stable else explodes / 2 if explodes else start
  return rate if LOWEST <= rate <= HIGHEST else None


def bounds(
  record: dict[str, Any], switch: str
) -> tuple[float | None, float | None]:
  """Returns a switch's largest stable and lowest exploding rate so far."""
  tried = _trials(record, switch, STEPS)
  lowest = min((t['rate'] for t in tried if t['exploded']), default=None)
  stable = [t['rate'] for t in tried if t['rate'] < (lowest or math.inf)]
  return max(stable, default=None), lowest


def _trials(
  record: dict[str, Any], switch: str, steps: int
) -> list[trials.Trial]:
  every = record['trials'].values()
  return [t for t in every if (t['switch'], t['steps']) == (switch, steps)]


def outcome(trial: trials.Trial) -> str:
  """Says in a few words what a trial did."""
  if trial['exploded'] is None:
    return f'stable for {trial["steps"]} steps, loss {trial["last_loss"]:.3f}'
  where = f' in {trial["layer"]}' if trial['layer'] else ''
  after = ', recovers' if trial['recovered'] else ''
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
  ...     '': {'stable_at': 0.004, 'explodes_at': 0.008},
  ...     'model.pre_norm': {'value': True, 'stable_at': 0.016},
  ...   },
  ...   'trials': {
  ...     'a': {**stable, 'rate': 0.001, 'last_loss': 1.8},
  ...     'b': {**stable, 'rate': 0.004, 'last_loss': 2.2},
  ...     'c': {**stable, 'rate': 0.004, 'steps': LATE_STEPS, 'exploded': 312},
  ...   },
  ... })
  'Tolerates a learning rate of 0.004 and learned best at 0.001 (0.004 explodes late, at step 312); model.pre_norm=True would allow 0.016 within 150 steps.'
  """  # noqa: E501
  switches = record['switches']
  tried, late = (_trials(record, '', n) for n in (STEPS, LATE_STEPS))
  lasting = [t['rate'] for t in late if not t['exploded']]
  rate = max(lasting, default=switches['']['stable_at'])
  lowest = switches['']['explodes_at']
  if rate is None:
    text = f'Explodes at {lowest:.3g}, the lowest learning rate that was tried'
  else:
    highest = ', the highest that was tried,' * (lowest is None)
    text = f'Tolerates a learning rate of {rate:.3g}{highest}'
  stable = [t for t in tried if not t['exploded'] and t['rate'] <= (rate or 0)]
  if stable:
    best = min(stable, key=lambda trial: trial['last_loss'])
    text += f' and learned best at {best["rate"]:.3g}'
  notes = [
    f'{t["rate"]:.3g} recovers from its explosion'
    for t in tried
    if t['exploded'] and t['recovered']
  ] + [
    f'{t["rate"]:.3g} explodes late, at step {t["exploded"]}'
    for t in late
    if t['exploded']
  ]
  text += f' ({"; ".join(notes)})' * bool(notes)
  base = switches['']['stable_at'] or 0  # as the switches': of STEPS steps
  better = [
    (found['stable_at'], f'{switch}={found["value"]!r}')
    for switch, found in switches.items()
    if switch and (found['stable_at'] or 0) > base
  ]
  if not better:
    none = '; no switch that was tried allows more' * (len(switches) > 1)
    return f'{text}{none}.'
  allowed, change = max(better)
  return f'{text}; {change} would allow {allowed:.3g} within {STEPS} steps.'


def table(record: dict[str, Any]) -> str:
  """Returns a line for each program that was searched."""
  form = '{:28}{:>12}{:>12}{:>8}  {}'.format
  rows = page.PROBE_TITLES, *page.probe_rows(record)
  return '\n'.join(form(*row) for row in rows)


def _open(folder: workdir_lib.Workdir, config: ConfigDict) -> dict[str, Any]:
  """Returns the record of probe.json, or a new one.

  Raises:
    UserError: it can't be read, or is of another config.
  """
  mine = config.to_dict()
  record = runs.read_probe(folder.path / workdir_lib.PROBE)
  if record is None:
    return {'config': mine, 'trials': {}, 'switches': {}, 'advice': ''}
  changes = config_lib.compare(record['config'], mine, folder.path)
  decisive = [c for c in changes if c[0] in _DECISIVE]
  if decisive:
    raise errors.UserError(
      f'The trials in {folder.path / workdir_lib.PROBE} were made with another '
      f'configuration:\n{config_lib.describe(decisive)}\nUse the same, or '
      'another --workdir.'
    )
  with formats.judging(folder.path / workdir_lib.PROBE):
    # Says what will be said of it, so that no edited file ends it half way.
    for trial in record['trials'].values():
      outcome(trial)
    if record['switches']:
      advice(record), table(record)
  return record
