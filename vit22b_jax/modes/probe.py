"""Finds the largest learning rate that doesn't explode, and what moves it.

    python main.py --mode=probe --config=configs/cifar10_vit22b_s.py

Short runs (trials) from the config's seed see the same batches and stop at an
explosion. Rates double until one explodes and are then bisected; each switch of
SWITCHES, flipped alone, gets a search of its own. One compiled step serves all
rates of a program, since the rate is part of the optimizer's state. A trial is
kept in WORKDIR/probe.json as soon as it ends, so a stopped probe goes on.
"""

import contextlib
import copy
import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from vit22b_jax import config as config_lib
from vit22b_jax import errors
from vit22b_jax.report import probe_page
from vit22b_jax.runtime import console, runs, sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import classification
from vit22b_jax.training import explain

STEPS = 150  # of a trial: the early explosions of Figure 1 came within 62
LATE_STEPS = 450  # of the check for late explosions
RATIO = 2**0.5  # neighboring rates of a finished search
LOWEST, HIGHEST = 1e-8, 1e2

# What is flipped alone: the value when off, and when on. Those that add no work
# to a step come first, then norms.
SWITCHES: dict[str, tuple[Any, Any]] = {
  'optim.warmup': ('0 steps', '50 steps'),
  'optim.clip_norm': (0.0, 10.0),
  'model.init': ('torch', 'vit'),
  'model.final_norm': (False, True),
  'model.qk_norm': (False, True),
  'model.pre_norm': (False, True),
  'model.mlp_norm': (False, True),
  'model.sum_norm': (False, True),
}

Trial = dict[str, Any]


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
    for switch in ('', *SWITCHES):
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
      flipped, value = flip(self.config, switch)
      program = Program(flipped, self.mesh, self.data)
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
    program = Program(flip(self.config, '')[0], self.mesh, self.data)
    for key, steps in (('explodes_at', STEPS), ('stable_at', LATE_STEPS)):
      if bounds[key] is not None:
        self.try_rate(program, '', bounds[key], steps, stop=False)

  def try_rate(
    self,
    program: 'Program',
    switch: str,
    rate: float,
    steps: int,
    *,
    stop: bool = True,
  ) -> Trial:
    """Returns the trial from the record, or runs and keeps it.

    Raises:
      TimeIsUp: it would have to run after the deadline.
    """
    name = f'{switch or "unchanged"} {rate:.6g} {steps}{"" if stop else " on"}'
    trials = self.record['trials']
    if name in trials:
      return trials[name]
    if time.monotonic() > self.deadline:
      raise TimeIsUp
    started = time.monotonic()
    trial = {'switch': switch, **program.trial(rate, steps, stop)}
    trials[name] = trial | {'seconds': round(time.monotonic() - started, 1)}
    self.folder.write_json(workdir_lib.PROBE, self.record)
    console.say(f'  {switch or "unchanged"} at {rate:.3g}: {outcome(trial)}')
    return trials[name]


def flip(config: ConfigDict, switch: str) -> tuple[ConfigDict, Any]:
  """Returns the config with one switch flipped, and the switch's new value.

  A key that is None takes what the block's preset says, so that is flipped.

  Args:
    config: a classifier's.
    switch: a key of SWITCHES; '' changes nothing.
  """
  flipped = copy.deepcopy(config)
  with flipped.unlocked():
    # The rate is the optimizer state's; only the thresholds count, at once.
    flipped.optim.learning_rate = 1.0
    flipped.diagnostics.update(
      on_explosion='record', ignore='0 steps', zscore=1e9, per_layer=True
    )
    if not switch:
      return flipped, None
    off, on = SWITCHES[switch]
    section, name = switch.split('.')
    now = flipped[section][name]
    if now is None:
      now = _preset(config, name)
    flipped[section][name] = value = on if now in (off, '0 steps', 0) else off
  return flipped, value


def _preset(config: ConfigDict, name: str) -> Any:
  """Returns what the block's row of presets says of a field."""
  model = classification.build_model(config, num_classes=2)
  return getattr(model, {'init': 'init_kind'}.get(name, name))


class Program:
  """Trains one config for a few steps at any learning rate.

  Args:
    config: from `flip`.
    mesh: where arrays live.
    data: the config's data set.
  """

  def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh, data: Any):
    self._task = classification.Classification(
      config, mesh, list(data.names), data
    )
    rate = optax.inject_hyperparams(optax.scale)(step_size=1.0)
    self._task.use_optimizer(optax.chain(self._task.tx, rate))
    self._fresh = None

  def trial(self, rate: float, steps: int, stop: bool) -> Trial:
    """Trains from the start at one rate.

    Args:
      rate: the learning rate; the config's warm-up and schedule multiply it.
      steps: at most so many.
      stop: at an explosion; else only at a loss that isn't finite.

    Returns:
      A row of probe.json: `rate steps exploded` (the step, or None),
      `recovered`, `moved_first layer last_loss`, and the curves `max_logit` and
      `max_abs_grad` by step.
    """
    task = self._task
    if self._fresh is None:
      self._fresh = task.init_state()
    state = jax.tree.map(jnp.copy, self._fresh)
    state = state.replace(
      opt_state=optax.tree_utils.tree_set(
        state.opt_state, step_size=jnp.asarray(rate, jnp.float32)
      )
    )
    rows: list[dict[str, float]] = []
    found = {'exploded': None, 'moved_first': None, 'layer': None}
    with contextlib.closing(task.train_batches()) as batches:
      for batch in itertools.islice(batches, steps):
        with sharding.mesh_context(task.mesh):
          state, scalars = task.train_step(state, batch)
        values = np.asarray(scalars).tolist()
        rows.append(dict(zip(task.scalars.all, values, strict=True)))
        if self._is_beyond(rows[-1]) and found['exploded'] is None:
          found = {'exploded': len(rows), **self._explain(state, rows[-1])}
        if (found['exploded'] and stop) or not rows[-1]['verdict/finite']:
          break
    beyond = [self._is_beyond(row) for row in rows[-10:]]
    return {
      'rate': rate,
      'steps': steps,
      'stop': stop,
      **found,
      'recovered': bool(found['exploded'] and not any(beyond)),
      'last_loss': _number(np.mean([row['loss'] for row in rows[-10:]])),
      'max_logit': [_number(row['max_logit']) for row in rows],
      'max_abs_grad': [_number(row['max_abs_grad']) for row in rows],
    }

  def _is_beyond(self, row: dict[str, float]) -> bool:
    """Tells whether a step is past the thresholds, or not finite."""
    limits = self._task.config.diagnostics
    return not (
      row['verdict/finite']
      and abs(row['max_logit']) < limits.max_logit
      and row['max_abs_grad'] < limits.max_abs_grad
    )

  def _explain(self, state: Any, row: dict[str, float]) -> dict[str, Any]:
    """Names the signal that moved first, and the layer."""
    names = self._task.scalars.signals
    return explain.first_to_move(
      np.asarray(state.monitor.history),
      names,
      int(state.step) - 1,
      np.array([row[name] for name in names]),
    )


def search(
  try_rate: Callable[[float], Trial], start: float
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


def outcome(trial: Trial) -> str:
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


def _number(value: float) -> float | None:
  """Returns five digits; None for what JSON can't say."""
  return float(f'{value:.5g}') if np.isfinite(value) else None
