"""Trains, evaluates and uses models: the command line of vit22b_jax.

python main.py --config=configs/cifar100_vit22b_s.py
python main.py --config=configs/cifar100_vit22b_s.py --config.seed=1 --workdir=W
python main.py --mode=eval --workdir=W
python main.py --mode=predict --workdir=W --input=FOLDER --top_k=3
python main.py --mode=export --workdir=W

Exit codes: 0 done; 2 a mistake in the input, with one message that says how to
mend it; 3 training stopped (a loss that isn't finite, or an explosion under
diagnostics.on_explosion=halt); 130 SIGINT and 143 SIGTERM, with everything
saved, so that the same command resumes.
"""

import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from vit22b_jax import errors, host, preemption

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of configs/, with words after a colon: configs/x.py:tiny. '
  '--config.KEY=VALUE changes a key.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, "The run's folder, local or gs://; runs/<config name>."
)
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'predict', 'export'], 'What to do.'
)
_INPUT = flags.DEFINE_string('input', None, 'predict: a folder of images.')
_TOP_K = flags.DEFINE_integer('top_k', 1, 'predict: classes for each image.')


def main(argv: list[str]) -> int:
  del argv
  try:
    return _dispatch()
  except errors.UserError as error:
    return _complain(error)
  except errors.TrainingStopped as error:
    print(f'stopped: {error}', file=sys.stderr)
    return 3


def _dispatch() -> int:
  from vit22b_jax import command  # jax starts here, after the flags are sound

  given = _CONFIG.value is not None
  name = (
    pathlib.Path(flags.FLAGS['config'].config_filename).stem if given else None
  )
  return command.run(
    _MODE.value,
    config=_CONFIG.value,
    workdir=_WORKDIR.value or (name and os.path.join('runs', name)),
    input_folder=_INPUT.value,
    top_k=_TOP_K.value,
  )


def _parse(argv: list[str]) -> list[str]:
  from vit22b_jax import configuration

  try:
    return configuration.parse_flags(argv)
  except errors.UserError as error:
    sys.exit(_complain(error))


def _complain(error: errors.UserError) -> int:
  print(f'error: {error}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  host.prepare()  # before jax
  with preemption.Watcher():
    app.run(main, flags_parser=_parse)
