r"""Trains, evaluates and uses models: the command line of vit22b_jax.

python main.py --config=configs/cifar100_vit22b_s.py
python main.py --config=configs/cifar100_vit22b_s.py --config.seed=1 --workdir=W
python main.py --mode=eval --workdir=W
python main.py --mode=predict --workdir=W --input=FOLDER --top_k=3
python main.py --mode=export --workdir=W

python main.py --config=configs/monet2photo_vitunet_s.py
python main.py --mode=translate --workdir=W --input=FOLDER --direction=b2a
python main.py --mode=fid --config=configs/fid.py --config.a=A --config.b=B

python main.py --mode=report --workdirs=runs/a,runs/b
python main.py --mode=report --workdirs="runs/figure2*" --workdir=FOLDER

python main.py --mode=probe --config=configs/cifar10_vit22b_s.py --minutes=20

python main.py --mode=plan --config=configs/vit22b_22b.py --topology=v4:8x8x16
python main.py --mode=plan --config=configs/vit22b_22b.py --search \
  --topology=v5e:16x16

Exit codes: 0 done; 2 a mistake in the input, with one message that says how to
mend it; 3 training stopped (a loss that isn't finite, or an explosion under
diagnostics.on_explosion=halt); 130 SIGINT and 143 SIGTERM, with everything
saved, so that the same command resumes; 134 another of several processes was
lost: the same command in all of them resumes (experiments/scaling/README.md).
"""

import csv
import glob
import os
import sys
import traceback

from absl import app, flags
from ml_collections import config_flags

from vit22b_jax import config as config_lib
from vit22b_jax import errors, rules
from vit22b_jax.modes import named_configs
from vit22b_jax.runtime import log

MODES = (
  *('train', 'eval', 'predict', 'export', 'translate'),
  *('fid', 'report', 'plan', 'probe'),
)

# --- Flags -----------------------------------------------------------------

# Flags of text, None by default.
_TEXTS = {
  'workdir': "The run's folder, local or gs://; runs/<config name>. report: "
  'where comparison.html goes; runs.',
  'input': 'predict, translate: a folder of images, or one file.',
  'topology': 'plan: the hardware, such as v4:8x8x16, v5e:2x4, h100:8; local '
  'by default.',
  'coordinator': 'Several processes that train as one: HOST:PORT of process 0. '
  'TPU pod slices, SLURM and Open MPI need no flag.',
}
# How each other flag but config is declared: arguments, bounds.
_FLAGS = (
  (
    flags.DEFINE_multi_string,
    'workdirs',
    [],
    'report: the folders of the runs to compare, or patterns of them; "quotes" '
    'keep a comma.',
  ),
  (flags.DEFINE_enum, 'mode', 'train', MODES, 'What to do.'),
  (flags.DEFINE_integer, 'top_k', 1, 'predict: classes for each image.'),
  (
    flags.DEFINE_enum,
    'direction',
    'a2b',
    ('a2b', 'b2a'),
    'translate: from domain a to b, or from b to a.',
  ),
  (
    flags.DEFINE_integer,
    'max_size',
    0,
    'translate: longest side in pixels that a generator sees; 0: as many as '
    'a GiB of memory bears.',
    0,
  ),
  (
    flags.DEFINE_bool,
    'search',
    False,
    'plan: try meshes, rematerialization and microbatches.',
  ),
  (
    flags.DEFINE_float,
    'matmul_efficiency',
    1.0,
    'plan: the part of the peak that matrix products are taken to reach.',
    0.01,
    1.0,
  ),
  (
    flags.DEFINE_float,
    'minutes',
    20.0,
    'probe: no further trial begins after so many minutes.',
    0.0,
  ),
  (flags.DEFINE_integer, 'num_processes', None, 'How many processes.'),
  (flags.DEFINE_integer, 'process_id', None, 'Which one this is, from 0 on.'),
  (
    flags.DEFINE_integer,
    'heartbeat_seconds',
    30,
    'How long one of several processes may be silent before the others end.',
    1,
  ),
)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  """Declares the flags; a config file's keys become flags when it is named."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'A file of configs/, with words after a colon: configs/x.py:tiny. '
    '--config.KEY=VALUE changes a key.',
    flag_values=values,
    sys_argv=argv,
  )
  for name, text in _TEXTS.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  for define, *arguments in _FLAGS:
    define(*arguments, flag_values=values)


def parse(argv: list[str], values: flags.FlagValues) -> list[str]:
  """Parses the command line, for absl's `app.run(flags_parser=...)`.

  Returns:
    The program's name alone: there are no other arguments than flags.

  Raises:
    UserError: a flag, key or word doesn't exist, or a value has the wrong type;
      the message names the closest that exists.
  """
  spec = _spec(argv)
  given, cleared = (argv, {}) if spec is None else _split_nones(argv)
  try:
    rest = values(given)
    if values['config'].value is not None:
      values['config'].value.keys()  # fails if there was no such file
    if cleared:
      values.config.update_from_flattened_dict(cleared)
  except flags.Error as error:
    raise errors.UserError(_explain(error, argv)) from None
  except (Exception, SystemExit) as error:  # of the file, which runs, or a key
    raise errors.UserError(_fault(argv, error)) from None
  if len(rest) > 1:
    raise errors.UserError(
      f'unexpected argument {rest[1]!r}: flags are --name=value'
    )
  if spec is not None and 'task' not in (values.config or ()):
    raise errors.UserError(
      f'--config={spec} is not a config of this package: its get_config() '
      'gives no config with a `task`. Start from a file of configs/.'
    )
  if values.config is not None:
    config_lib.validate_config(values.config)
  for name in ('workdir', 'input'):  # a shell leaves ~ after = as it is
    if values[name].value is not None:
      values[name].value = os.path.expanduser(values[name].value)
  return rest


def _split_nones(argv: list[str]) -> tuple[list[str], dict[str, None]]:
  """Splits --config.KEY=None from the rest, where a key may be None.

  A flag's parser would take the word for a number or a tuple.
  """
  rest, cleared = [], {}
  optional = {
    k for keys in rules.RULES.values() for k in keys if keys[k].optional
  }
  for argument in argv:
    flag, _, value = argument.lstrip('-').partition('=')
    key = flag.removeprefix('config.')
    cleared.pop(key, None)  # the last one counts
    if value == 'None' and key != flag and key in optional:
      cleared[key] = None
    else:
      rest.append(argument)
  return rest, cleared


def _spec(argv: list[str]) -> str | None:
  """Returns FILE[:words] of the last --config=FILE[:words], which counts."""
  found = None
  for i, argument in enumerate(argv):
    name, _, value = argument.partition('=')
    if name in ('--config', '-config'):
      found = value or ''.join(argv[i + 1 : i + 2])
  return found


def _fault_of_file(spec: str | None, error: BaseException) -> str:
  """Says what went wrong in a config file, and in which line."""
  file = os.path.basename((spec or '').partition(':')[0])
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if os.path.basename(f.filename) == file]
  line = getattr(error, 'lineno', None) or (lines[-1] if lines else None)
  where = f' in line {line}' if line else ''
  message = getattr(error, 'msg', error)
  return f'--config={spec}: {type(error).__name__}{where}: {message}'


def _fault(argv: list[str], error: BaseException) -> str:
  """Says that there is no such file or key, or what is wrong in the file."""
  spec = _spec(argv)
  if isinstance(error, OSError) and not os.path.exists(spec.partition(':')[0]):
    return _unknown_file(spec)
  argv_without = [argv[0], f'--config={spec}']
  values = flags.FlagValues()
  try:
    define_flags(values, argv_without)
    values(argv_without)
    known = rules.flatten(values.config or {})
  except (Exception, SystemExit) as fault:  # of the file alone
    if isinstance(fault, AttributeError) and 'get_config' in str(fault):
      return f'{spec} is not a config file: it has no get_config()'
    return _fault_of_file(spec, fault)
  for argument in argv:
    flag = argument.lstrip('-').partition('=')[0]
    prefix, _, key = flag.partition('.')
    if prefix in ('config', 'noconfig') and key and key not in known:
      hint = named_configs.suggest_key(key, known)
      return f'--config.{key}: there is no such key in {spec}.{hint}'
  return _fault_of_file(spec, error)


def _unknown_file(spec: str) -> str:
  path = spec.partition(':')[0]
  folder = os.path.dirname(path)
  known = glob.glob(os.path.join(glob.escape(folder), '*.py'))
  if not folder:
    known += named_configs.names()
  hint = errors.did_you_mean(path, known)
  return f'--config={path}: no such file.{hint} --list names what there is.'


def _explain(error: flags.Error, argv: list[str]) -> str:
  """Returns one line: what a parser said, or get_config of a word."""
  spec = _spec(argv)
  unknown = getattr(error, 'flagname', '')
  hint = named_configs.suggest_key(
    unknown, rules.RULES['classification'], '--config.'
  )
  if hint:
    return f'--{unknown}: there is no such flag.{hint}'
  if spec is None and unknown.startswith('config.'):
    return f'--{unknown}: give --config=FILE before it'
  if f'--config={spec}: ' in str(error):  # wrapped in a traceback
    while error.__context__ is not None:
      error = error.__context__
    return f'--config={spec}: {error}'
  return str(error).removeprefix('flag ')


# --- Process ---------------------------------------------------------------


def main() -> None:
  """Runs the command line of this process and ends it with an exit code."""
  from vit22b_jax.runtime import host, preemption

  named_configs.import_folder()
  argv = named_configs.resolve(sys.argv)
  if text := help_for(argv):
    print(text)
    return
  host.prepare()  # before jax
  values = flags.FLAGS
  with preemption.Watcher():
    define_flags(values, argv)
    app.run(_main, argv, flags_parser=lambda argv: parse_or_exit(argv, values))


def help_for(argv: list[str]) -> str:
  """Returns what --help or --list ask for; '' where they weren't given."""
  asked = {argument.lstrip('-') for argument in argv if argument[:1] == '-'}
  if 'list' in asked:
    return named_configs.listing()
  if not asked & {'help', 'helpshort', 'helpfull', 'h', '?'}:
    return ''
  values = flags.FlagValues()
  rest = [a for a in argv if a.lstrip('-') not in ('help', 'helpshort', 'h')]
  define_flags(values, rest)
  if _spec(rest) is None:
    return f'{__doc__}{values.module_help(__name__)}'
  parse_or_exit(rest, values)
  path = _spec(rest).partition(':')[0]
  return named_configs.describe(values.config, path)


def parse_or_exit(argv: list[str], values: flags.FlagValues) -> list[str]:
  """Parses the command line; a mistake in it ends the process with code 2."""
  try:
    return parse(argv, values)
  except errors.UserError as error:
    sys.exit(_refuse(error))


def _refuse(error: errors.UserError) -> int:
  """Prints a mistake in the input; returns its exit code."""
  print(f'error: {errors.printable(error)}', file=sys.stderr)
  return 2


def _main(_: list[str]) -> int:
  log.show()
  return run_flags(flags.FLAGS)


def run_flags(values: flags.FlagValues) -> int:
  """Does what the parsed flags say; returns the exit code."""
  if values.mode == 'report':
    try:
      return _report(values)
    except errors.UserError as error:
      return _refuse(error)
  import jax

  if values.mode == 'plan' and values.topology not in (None, 'local'):
    # The CPU compiles: libtpu must not look for TPUs, nor the plugin for CUDA.
    os.environ['JAX_PLATFORMS'] = 'cpu'
    jax.config.update('jax_platforms', 'cpu')  # jax may have read that before
  from vit22b_jax import commands
  from vit22b_jax.runtime import console, distributed, host

  try:
    distributed.initialize(
      values.coordinator,
      values.num_processes,
      values.process_id,
      heartbeat_seconds=values.heartbeat_seconds,
      mode=values.mode,
    )
    host.start_backend()
    console.hush_others()
    return commands.run(values)
  except errors.TrainingStopped as error:
    if jax.process_index() == 0:  # all have met it
      print(f'stopped: {error}', file=sys.stderr)
    return 3
  except Exception as error:
    error = distributed.explained(error)
    distributed.exit_on_error(error)
    if not isinstance(error, errors.UserError):
      raise
    return _refuse(error)


def _report(values: flags.FlagValues) -> int:
  """Compares runs by their files alone: no device is started."""
  from vit22b_jax import report

  folder = values.workdir or 'runs'
  lines = '\n'.join(values.workdirs).splitlines()
  wanted = [place for line in csv.reader(lines) for place in line]
  if any('**' in pattern for pattern in wanted):
    raise errors.UserError(
      f'--workdirs={",".join(wanted)}: ** is not understood; give a pattern '
      'for each level, such as runs/*,runs/*/*.'
    )
  path = report.compare(wanted, os.path.join(folder, 'comparison.html'))
  print(f'Comparison: {path}')
  return 0
