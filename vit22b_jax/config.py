"""The config of a run: from the command line, judged early, compared later.

    app.run(main, flags_parser=configuration.parse_flags)
    configuration.validate(config)

What a resumed run may change is told from what makes it another run:

    >>> old = {'seed': 0, 'duration': '3 epochs', 'optim': {'b1': 0.9}}
    >>> identity, free = diff(old, {**old, 'seed': 1, 'duration': '9 epochs'})
    >>> identity, free
    ([('seed', 0, 1)], [('duration', '3 epochs', '9 epochs')])

Everything that a user may have mistyped ends in one errors.UserError.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from vit22b_jax import durations, errors
from vit22b_jax.data import domains, resizing, transforms
from vit22b_jax.runtime import sharding
from vit22b_jax.training import losses, optim

CHOICES = {
  'sharding': tuple(sharding.PRESETS),
  'data.augment': transforms.PRESETS,
  'data.pairing': domains.PAIRINGS,
  'data.preprocess': resizing.MODES,
  'optim.name': optim.OPTIMIZERS,
  'optim.decay': optim.DECAYS,
  'optim.schedule': tuple(optim.SCHEDULES),
  'loss.kind': losses.KINDS,
  'eval.checkpoint': ('best', 'last'),
  'diagnostics.on_explosion': ('record', 'skip_step', 'halt'),
}  # models.vit judges the model section

# At least the first, below the second.
RANGES = {
  'seed': (0, 2**32),
  'batch_size': (1, math.inf),
  'data.image_size': (1, math.inf),
  'data.load_size': (1, math.inf),
  'data.val_fraction': (0, 1),
  'data.cache_max_gb': (0, math.inf),
  'data.max_corrupt': (0, math.inf),
  'data.workers': (0, math.inf),
  'model.patch_size': (1, math.inf),
  'optim.b1': (0, 1),
  'optim.b2': (0, 1),
  'optim.momentum': (0, 1),
  'optim.weight_decay': (0, math.inf),
  'optim.head_weight_decay': (0, math.inf),
  'optim.clip_norm': (0, math.inf),
  'optim.accumulate': (1, math.inf),
  'optim.ema': (0, 1),
  'optim.pool_size': (0, math.inf),
  'loss.label_smoothing': (0, 1),
  'loss.input_gradient_penalty': (0, math.inf),
  'loss.lambda_cycle': (0, math.inf),
  'loss.lambda_identity': (0, math.inf),
  'loss.discriminator_factor': (0, math.inf),
  'fid.batch_size': (1, math.inf),
  'fid.kid_subsets': (2, math.inf),
  'fid.kid_subset_size': (2, math.inf),
  'log.num_samples': (1, math.inf),
  'diagnostics.window': (1, math.inf),
  'checkpoint.minutes': (0, math.inf),
  'checkpoint.keep': (1, math.inf),
  'checkpoint.keep_best': (0, math.inf),
  'eval.batch_size': (1, math.inf),
  'eval.early_stop': (0, math.inf),
  'mesh.max_replicated': (0, math.inf),
}

POSITIVE = (
  'optim.learning_rate',
  'optim.eps',
  'diagnostics.max_logit',
  'diagnostics.max_abs_grad',
  'diagnostics.zscore',
)

DURATIONS = ('optim.warmup', 'optim.decay_start', 'diagnostics.ignore')
CADENCES = (
  'duration',
  'checkpoint.every',
  'eval.every',
  'log.every',
  'log.samples',
)

# What a resumed run may change: length, cadences, paths, machines and how
# they share the work, alarms.
# Every other key must stay, so that the run is one run.
MUTABLE_ON_RESUME = (
  'duration',
  'init_from',
  'profile',
  'data.dir',
  'data.cache_max_gb',
  'data.max_corrupt',
  'data.workers',
  'checkpoint.',
  'eval.',
  'fid.batch_size',
  'log.',
  'model.remat',
  'model.scan_layers',
  'sharding',
  'mesh.',
  'diagnostics.on_explosion',
  'diagnostics.max_logit',
  'diagnostics.max_abs_grad',
  'diagnostics.zscore',
  'diagnostics.ignore',
)
ABSENT = '(absent)'

# Old name -> new name, for config.json files written before a key was renamed.
RENAMED_KEYS: dict[str, str] = {}

Change = tuple[str, Any, Any]


def parse_flags(
  argv: list[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses the command line, for absl's `app.run(flags_parser=...)`.

  Args:
    argv: the program's name and its arguments.
    flag_values: where `config_flags.DEFINE_config_file('config', ...)` was
      called; for others than absl's own, with `sys_argv=argv`.

  Returns:
    The program's name and arguments that are not flags: always only the name.

  Raises:
    errors.UserError: a flag, key or word doesn't exist, or a value has the
      wrong type; the message names the closest that exists.
  """
  try:
    rest = flag_values(argv)
    if flag_values['config'].value is not None:
      flag_values['config'].value.keys()  # fails if there was no such file
  except (AttributeError, KeyError):
    raise errors.UserError(_unknown_key(argv)) from None
  except OSError:
    raise errors.UserError(_unknown_file(_spec(argv))) from None
  except flags.Error as e:
    raise errors.UserError(_explain(e, argv)) from None
  if len(rest) > 1:
    raise errors.UserError(
      f'unexpected argument {rest[1]!r}: flags are --name=value'
    )
  return rest


def _spec(argv: list[str]) -> str | None:
  """FILE[:words] of --config=FILE[:words] or --config FILE[:words]."""
  for i, argument in enumerate(argv):
    name, _, value = argument.partition('=')
    if name in ('--config', '-config'):
      return value or ''.join(argv[i + 1 : i + 2])
  return None


def _unknown_key(argv: list[str]) -> str:
  """Names the first override of a key that the config file doesn't have."""
  spec = _spec(argv)
  argv_without = [argv[0], f'--config={spec}']
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_file(
      'config', flag_values=values, sys_argv=argv_without
    )
    values(argv_without)
    known = flatten(values.config)
  except AttributeError:
    return f'{spec} is not a config file: it has no get_config()'
  for argument in argv:
    flag = argument.lstrip('-').partition('=')[0]
    prefix, _, key = flag.partition('.')
    if prefix in ('config', 'noconfig') and key and key not in known:
      hint = errors.did_you_mean(key, known)
      return f'--config.{key}: there is no such key in {spec}.{hint}'
  raise AssertionError(f'no unknown key in {argv}')


def _unknown_file(spec: str) -> str:
  path = spec.partition(':')[0]
  folder = os.path.dirname(path) or '.'
  files = os.listdir(folder) if os.path.isdir(folder) else []
  known = [os.path.join(os.path.dirname(path), f) for f in files]
  known = [f for f in known if f.endswith('.py')]
  return f'--config={path}: no such file.{errors.did_you_mean(path, known)}'


def _explain(error: flags.Error, argv: list[str]) -> str:
  """One line: what a parser said, or get_config of a word."""
  spec = _spec(argv)
  unknown = getattr(error, 'flagname', '')
  if spec is None and unknown.startswith('config.'):
    return f'--{unknown}: give --config=FILE before it'
  if f'--config={spec}: ' in str(error):  # wrapped in a traceback
    while error.__context__ is not None:
      error = error.__context__
    return f'--config={spec}: {error}'
  return str(error).removeprefix('flag ')


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'optim': {'b1': 0.9}} -> {'optim.b1': 0.9}; lists become tuples."""
  if isinstance(values, config_dict.ConfigDict):
    values = values.to_dict()
  flat = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = _with_tuples(value)
  return flat


def to_json(config: config_dict.ConfigDict) -> str:
  """The config as config.json holds it, key by key in alphabetical order."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> config_dict.ConfigDict:
  """The config that `to_json` wrote, tuples and lock included.

  A None comes back without its type, so such a key takes anything.

  Raises:
    errors.UserError: the text is damaged.
  """
  try:
    values = json.loads(text)
  except ValueError as error:
    raise errors.UserError(
      f"The run's config.json is damaged ({error}): put a backup in its place, "
      'or use another --workdir.'
    ) from None
  return config_dict.ConfigDict(rename_keys(_with_tuples(values))).lock()


def rename_keys(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns nested values with each key of RENAMED_KEYS under its new name."""
  renamed = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      renamed[key] = rename_keys(value, f'{prefix}{key}.')
    else:
      new = RENAMED_KEYS.get(f'{prefix}{key}', key)
      renamed[new.rpartition('.')[2]] = value
  return renamed


def _with_tuples(value: Any) -> Any:
  """A nested dict, with tuples where JSON had to write lists."""
  if isinstance(value, Mapping):
    return {key: _with_tuples(v) for key, v in value.items()}
  return tuple(value) if isinstance(value, list) else value


def validate(config: config_dict.ConfigDict) -> None:
  """Judges each key of a run's config by itself; a task judges how they fit.

  Raises:
    errors.UserError: an unknown name, a number out of range, or a duration
      that doesn't parse.
  """
  values = flatten(config)
  for key in filter(values.__contains__, CHOICES):
    if values[key] not in CHOICES[key]:
      raise errors.UserError(
        f'{key}={values[key]!r} is not one of {", ".join(CHOICES[key])}.'
        f'{errors.did_you_mean(values[key], CHOICES[key])}'
      )
  for key in filter(values.__contains__, RANGES):
    value, (low, high) = values[key], RANGES[key]
    if value is not None and not low <= value < high:
      below = f' and below {high}' if high < math.inf else ''
      raise errors.UserError(f'{key}={value} must be at least {low}{below}.')
  for key in filter(values.__contains__, POSITIVE):
    if not 0 < values[key] < math.inf:
      raise errors.UserError(f'{key}={values[key]} must be above 0.')
  for key in filter(values.__contains__, (*DURATIONS, *CADENCES)):
    durations.check(
      values[key],
      key,
      percent=key != 'duration',
      positive=key in CADENCES,
    )
  for key in (f'mesh.{axis}' for axis in sharding.AXES):
    if values[key] is not None and values[key] < 1 and values[key] != -1:
      raise errors.UserError(
        f'{key}={values[key]} must be at least 1, or -1 for all the devices '
        'that the other axes leave.'
      )


def diff(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[Change], list[Change]]:
  """Keys whose values differ between two configs.

  Args:
    old: a config, or what its JSON file holds.
    new: likewise.

  Returns:
    Those that make it another run (model, optimiser, loss, data order, seed),
    and those that a resumed run may change; (key, old, new) each, sorted.
  """
  old, new = flatten(old), flatten(new)
  identity, free = [], []
  for key in sorted({*old, *new}):
    change = (key, old.get(key, ABSENT), new.get(key, ABSENT))
    # A key that came later and is left to its default changes nothing.
    unset = ABSENT in change and None in change
    if change[1] != change[2] and not unset:
      same_run = key.startswith(MUTABLE_ON_RESUME) or _moved_folder(*change)
      (free if same_run else identity).append(change)
  return identity, free


def compare(
  old: Mapping[str, Any], new: Mapping[str, Any], workdir: Any
) -> list[Change]:
  """Compares a run's saved config with the one it is resumed with.

  Args:
    old: the config that the run was made with.
    new: the config of this start.
    workdir: the run's folder, for the message.

  Returns:
    The keys of MUTABLE_ON_RESUME that changed; (key, old, new) each.

  Raises:
    UserError: another key differs, so this would be another run; the message
      lists the differences.
  """
  identity, changes = diff(old, new)
  if identity:
    rows = '\n'.join(f'  {k}: {a!r} there, {b!r} here' for k, a, b in identity)
    raise errors.UserError(
      f'The workdir {workdir} belongs to a run with another configuration:\n'
      f'{rows}\nUse another folder, as in --workdir={workdir}_2, or the same '
      'configuration.'
    )
  return changes


def _moved_folder(key: str, old: Any, new: Any) -> bool:
  """Whether own images have only been moved; their names are compared later."""
  paths = (str(old), str(new))
  return key == 'data.name' and all(p.startswith('folder:') for p in paths)
