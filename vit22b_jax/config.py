"""The config of a run: judged once, saved as JSON, compared on resume.

    config_lib.validate_config(config)     # each key by its rule
    config_lib.compare(saved, config, workdir)

The rules are those of `rules`. This module never imports jax, so `report` and
`--help` may use it.

What a resumed run may change is told from what makes it another run:

    >>> old = {'seed': 0, 'duration': '3 epochs', 'optim': {'b1': 0.9}}
    >>> new = {**old, 'seed': 1, 'duration': '9 epochs'}
    >>> identity, mutable = diff(old, new)
    >>> identity, mutable
    ([('seed', 0, 1)], [('duration', '3 epochs', '9 epochs')])
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import config_dict

from vit22b_jax import errors, rules

ConfigDict = config_dict.ConfigDict
Change = tuple[str, Any, Any]

# Old name -> new name, for config.json files written before a key was renamed.
RENAMED_KEYS = {
  'fid.quantise': 'fid.quantize',
  'optim.first': 'optim.update_order',
}

# What a resumed run may change: length, cadences, paths, machines and how
# they share the work, alarms. Every other key makes it another run.
MUTABLE_ON_RESUME = (
  *('duration', 'profile', 'sharding', 'mesh.'),
  *('data.dir', 'data.cache_max_gb', 'data.max_corrupt', 'data.workers'),
  'data.allow_changes',
  *('checkpoint.', 'eval.', 'log.', 'fid.batch_size'),
  *('model.attention', 'model.remat', 'model.scan_layers'),
  *('diagnostics.on_explosion', 'diagnostics.max_logit'),
  *('diagnostics.max_abs_grad', 'diagnostics.zscore', 'diagnostics.ignore'),
)


def validate_config(config: Mapping[str, Any]) -> None:
  """Judges each key of a config by its rule.

  Raises:
    UserError: the task is unknown, a key is missing or unknown, or a value is
      not one that its key takes; the message names the key and says what is.
  """
  values = rules.flatten(config)
  task = values.pop('task', None)
  errors.validate_choice('task', task, rules.RULES)
  known = rules.RULES[task]
  unknown = sorted(values.keys() - known.keys())
  missing = sorted(known.keys() - values.keys())
  if unknown or missing:
    problem = f'there is no key {unknown[0]}' if unknown else ''
    problem = problem or f'the key {missing[0]} is missing'
    hint = errors.did_you_mean(unknown[0], known) if unknown else ''
    raise errors.UserError(
      f'task={task!r}: {problem} for this task, which comes with a config file '
      f'and can not be changed.{hint}'
    )
  for key, rule in known.items():
    rule.validate(key, values[key])


# --- JSON ------------------------------------------------------------------


def to_json(config: ConfigDict) -> str:
  """Returns the config as config.json holds it, keys in alphabetical order."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(text: str, path: Any = 'config.json') -> ConfigDict:
  """Returns the config that `to_json` wrote: tuples, types, lock and all.

  Raises:
    UserError: the text is damaged, or a value is not one that its key takes.
  """
  try:
    values = json.loads(text)
    if not isinstance(values, dict):
      raise ValueError(f'expected keys and values, not {text[:40].strip()!r}')
    values = upgrade(values)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f'{path} is damaged ({error}): put a backup in its place, or use another '
      '--workdir.'
    ) from None
  try:
    validate_config(values)
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from None
  config = ConfigDict({'task': values['task']})
  for key, rule in rules.RULES[config.task].items():
    section, _, name = key.rpartition('.')
    if section and section not in config:
      config[section] = ConfigDict()
    value = values[key]
    if value is None:  # has a type all the same
      value = config_dict.placeholder(rule.kind)
    elif rule.kind is float:  # 4 is 4.0
      value = float(value)
    (config[section] if section else config)[name] = value
  return config.lock()


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an older config.json's values by today's dotted keys.

  Renamed keys get their new names, and keys that came later get the value that
  their absence meant.
  """
  flat = rename_keys(rules.flatten(values))
  for key, rule in rules.RULES.get(str(flat.get('task')), {}).items():
    absent = None if rule.optional else rule.absent
    if absent != rules.ABSENT:
      flat.setdefault(key, absent)
  return flat


def rename_keys(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns values by dotted key, those of RENAMED_KEYS under their new names.

  `prefix` is a part's, such as 'fid.' for what eval.json repeats of `fid`.
  """
  return {
    RENAMED_KEYS.get(f'{prefix}{key}', key).removeprefix(prefix): value
    for key, value in values.items()
  }


# --- Resume ----------------------------------------------------------------


def resolve_dtype(config: ConfigDict, platform: str) -> None:
  """Replaces model.dtype='auto' by float32 on CPUs, bfloat16 elsewhere."""
  if config.model.dtype == 'auto':
    config.model.dtype = 'float32' if platform == 'cpu' else 'bfloat16'


def diff(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[Change], list[Change]]:
  """Returns the keys whose values differ between two configs.

  Returns:
    Those that make it another run (model, optimizer, loss, data order, seed),
    and those that a resumed run may change; (key, old, new) each, sorted.
  """
  old, new = upgrade(old), rules.flatten(new)
  identity, mutable = [], []
  for key in sorted({*old, *new}):
    before, now = old.get(key, rules.ABSENT), new.get(key, rules.ABSENT)
    if before != now:
      # Own images may have moved; their names are compared later.
      folders = f'{before} {now}'.count('folder:') == 2
      may_change = key.startswith(MUTABLE_ON_RESUME)
      may_change |= key == 'data.name' and folders
      (mutable if may_change else identity).append((key, before, now))
  return identity, mutable


def describe(changes: Iterable[Change]) -> str:
  """Returns a line for each key that differs."""
  return '\n'.join(f'  {k}: {a!r} there, {b!r} here' for k, a, b in changes)


def compare(
  old: Mapping[str, Any], new: Mapping[str, Any], workdir: Any
) -> list[Change]:
  """Compares a run's saved config with the one it is resumed with.

  A new model.dtype='auto' becomes the saved one.

  Returns:
    The keys of MUTABLE_ON_RESUME that changed; (key, old, new) each.

  Raises:
    UserError: another key differs, so this would be another run; the message
      lists the differences and says how to start one.
  """
  if new.get('model', {}).get('dtype') == 'auto':
    new['model']['dtype'] = old.get('model', {}).get('dtype', 'auto')
  identity, changes = diff(old, new)
  if identity:
    raise errors.UserError(
      f'The workdir {workdir} belongs to a run with another configuration:\n'
      f'{describe(identity)}\nUse the same configuration, or start another '
      f'run: --workdir={workdir}_2, from these weights with '
      f'--config.init_from={workdir}.'
    )
  return changes
