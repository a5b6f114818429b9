"""Trains, evaluates and uses models: the command line of vit22b_jax.

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

python main.py --mode=plan --config=configs/vit22b_22b.py --topology=v4:8x8x16
python main.py --mode=plan --config=configs/vit22b_22b.py --search \
  --topology=v5e:16x16

Exit codes: 0 done; 2 a mistake in the input, with one message that says how to
mend it; 3 training stopped (a loss that isn't finite, or an explosion under
diagnostics.on_explosion=halt); 130 SIGINT and 143 SIGTERM, with everything
saved, so that the same command resumes; 4 one of several processes was lost:
the same command in every process resumes (experiments/scaling/README.md).
"""

import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from vit22b_jax import errors
from vit22b_jax.runtime import host, preemption

_MODES = (
  'train',
  'eval',
  'predict',
  'export',
  'translate',
  'fid',
  'report',
  'plan',
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
  flags.DEFINE_string(
    'workdir',
    None,
    "The run's folder, local or gs://; runs/<config name>. report: where "
    'comparison.html goes; runs.',
    flag_values=values,
  )
  flags.DEFINE_enum('mode', 'train', _MODES, 'What to do.', flag_values=values)
  flags.DEFINE_multi(
    flags.ListParser(),
    flags.CsvListSerializer(','),
    'workdirs',
    [],
    'report: the folders of the runs to compare, or patterns of them.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'input',
    None,
    'predict, translate: a folder of images.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'top_k', 1, 'predict: classes for each image.', flag_values=values
  )
  flags.DEFINE_enum(
    'direction',
    'a2b',
    ('a2b', 'b2a'),
    'translate: from domain a to b, or from b to a.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'topology',
    None,
    'plan: the hardware, such as v4:8x8x16, v5e:2x4, h100:8; local by default.',
    flag_values=values,
  )
  flags.DEFINE_float(
    'matmul_efficiency',
    1.0,
    'plan: the part of the peak that matrix products are taken to reach.',
    lower_bound=0.01,
    upper_bound=1.0,
    flag_values=values,
  )
  flags.DEFINE_bool(
    'search',
    False,
    'plan: try meshes, rematerialisation and microbatches.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'Several processes that train as one: HOST:PORT of process 0. TPU pod '
    'slices, SLURM and Open MPI need no flag.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'num_processes', None, 'How many processes.', flag_values=values
  )
  flags.DEFINE_integer(
    'process_id', None, 'Which one this is, from 0 on.', flag_values=values
  )


def parse(argv: list[str], values: flags.FlagValues) -> list[str]:
  """Parses the command line; a mistake in it ends the process with code 2."""
  from vit22b_jax import config as config_lib

  try:
    return config_lib.parse_flags(argv, values)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


def run(values: flags.FlagValues) -> int:
  """Does what the flags say; the exit code."""
  if values.mode == 'report':
    return _report(values)
  if values.mode == 'plan' and values.topology not in (None, 'local'):
    # The CPU compiles; libtpu must not look for TPUs.
    os.environ['JAX_PLATFORMS'] = 'cpu'
  # jax starts here
  from vit22b_jax import cli
  from vit22b_jax.runtime import console, distributed, links

  name = None
  if values.config is not None:
    name = pathlib.Path(values['config'].config_filename).stem
  try:
    job = distributed.find(
      values.coordinator,
      values.num_processes,
      values.process_id,
      mode=values.mode,
    )
    distributed.start(job)
    console.hush_others()
    code = cli.run(
      values.mode,
      config=values.config,
      workdir=values.workdir or (name and os.path.join('runs', name)),
      input_folder=values.input,
      top_k=values.top_k,
      direction=values.direction,
      topology=values.topology,
      search=values.search,
      efficiency=values.matmul_efficiency,
      workdirs=values.workdirs,
    )
  except errors.UserError as error:
    links.complain(f'error: {error}', code := 2)
  except errors.TrainingStopped as error:
    links.complain(f'stopped: {error}', code := 3)
  except Exception as error:
    links.give_up(error)
    raise
  links.finish(code)
  return code


def _report(values: flags.FlagValues) -> int:
  """Compares runs by their files alone: no device is started."""
  from vit22b_jax import report

  folder = values.workdir or 'runs'
  wanted = [workdir for given in values.workdirs for workdir in given]
  try:
    path = report.compare(wanted, os.path.join(folder, 'comparison.html'))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'Comparison: {path}')
  return 0


def main(argv: list[str]) -> int:
  del argv
  from vit22b_jax.runtime import console

  console.show_log()
  return run(flags.FLAGS)


if __name__ == '__main__':
  host.prepare()  # before jax
  with preemption.Watcher():
    define_flags(flags.FLAGS, sys.argv)
    app.run(main, flags_parser=lambda argv: parse(argv, flags.FLAGS))
