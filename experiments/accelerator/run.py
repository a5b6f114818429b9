"""Measures this project on the machine's accelerator, most valuable first.

    python -m experiments.accelerator.run --minutes=12 \
      --cifar10=folder:PATH --cifar100=TFDS_DIR
    python -m experiments.accelerator.run --scale=tiny --results=FOLDER

Every row (see `rows`) is written to results.json as soon as it ends. Stopped at
any moment and started again, the command goes on with the rows that are missing
or failed. `python -m experiments.accelerator.tables` makes results.md.
"""

import argparse
import importlib.util
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from experiments import runner
from experiments.accelerator import rows as rows_lib
from experiments.accelerator import tables
from vit22b_jax.data import files

HERE = pathlib.Path(__file__).parent
_EPOCH_IMAGES = 45_000  # of CIFAR's training part, a tenth held out
_RESERVE = 5.0  # seconds to write results in
# Asks a process of its own, so that this one holds no device.
_DEVICES = (
  'import jax, json; print(json.dumps({"jax": jax.__version__, "devices": '
  '[f"{d.platform}:{d.device_kind}" for d in jax.devices()]}))'
)


def main(argv: list[str] | None = None) -> None:
  """Measures what is missing until the minutes are over."""
  given = _parser().parse_args(argv)
  deadline = time.monotonic() + 60 * given.minutes - _RESERVE
  given.results.mkdir(parents=True, exist_ok=True)
  path = given.results / 'results.json'
  found = json.loads(path.read_text()) if path.exists() else {'rows': {}}
  found['machine'] = machine()
  print(found['machine'])
  setting = {'machine': found['machine'], 'scale': given.scale}
  for row in rows_lib.all_rows(given.scale):
    if _is_done(found['rows'].get(row.name, {}), setting):
      continue
    left = deadline - time.monotonic()
    if left < row.least:
      print(f'{row.name}: no time is left')
      continue
    source = getattr(given, row.data) if row.data else ''
    if row.data and not source:
      print(f'{row.name}: needs --{row.data}=folder:PATH or a TFDS folder')
      continue
    if row.kind == 'peer' and importlib.util.find_spec('timm') is None:
      print(f'{row.name}: needs torch and timm')
      continue
    started = time.monotonic()
    result = measure(row, min(left, row.limit), given, source, found['rows'])
    result |= setting
    result['seconds'] = round(time.monotonic() - started, 1)
    found['rows'][row.name] = result
    _write(path, found)
    print(f'{row.name}: {result["status"]} in {result["seconds"]} s')
  _write(path, found)
  tables.write(given.results)


def _is_done(row: dict[str, Any], setting: dict[str, Any]) -> bool:
  """Returns whether a row was measured on this machine, at this scale."""
  return row.get('status') == 'done' and row.items() >= setting.items()


def measure(
  row: rows_lib.Row,
  seconds: float,
  given: argparse.Namespace,
  source: str,
  before: dict[str, Any],
) -> dict[str, Any]:
  """Runs a row in a process of its own.

  Args:
    row: what to measure.
    seconds: after which the process is stopped.
    given: the command line.
    source: of a training's images; '' where none are needed.
    before: the rows so far, which tell how many epochs fit.

  Returns:
    `status` ('done', 'failed' or 'out of time'), `arguments`, and what was
    measured or the `error`.
  """
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder) / 'row.json'
    workdir = given.runs / row.name.replace(' ', '_').replace(':', '')
    if row.kind == 'train':
      arguments = _fitted(row, seconds, before)
      command = _training(arguments, source, workdir)
    else:
      arguments = dict(row.arguments)
      module = 'experiments.accelerator.measure'
      command = ['-m', module, row.kind, json.dumps(arguments), str(output)]
    result: dict[str, Any] = {'arguments': arguments}
    try:
      done = subprocess.run(
        [sys.executable, *command],
        cwd=runner.ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
      )
    except subprocess.TimeoutExpired:
      return result | {'status': 'out of time'}
    # A training that exploded under `halt` ends with 3, which is a result.
    if done.returncode not in (0, 3):
      error = (done.stderr or done.stdout).strip().splitlines()[-3:]
      return result | {'status': 'failed', 'error': '\n'.join(error)}
    result['status'] = 'done'
    if row.kind == 'train':
      return result | _trained(workdir, given.results, row)
    return result | json.loads(output.read_text())


def _training(
  arguments: dict[str, Any], source: str, workdir: pathlib.Path
) -> list[str]:
  """Returns the command line of a training."""
  keys = {k: v for k, v in arguments.items() if k != 'config'}
  if source.startswith('folder:'):
    keys['data.name'] = source
  else:
    keys['data.dir'] = source
  return [
    'main.py',
    f'--config={arguments["config"]}',
    *(f'--config.{key}={value}' for key, value in keys.items()),
    '--config.log.tensorboard=False',
    f'--workdir={workdir.absolute()}',
  ]


def _fitted(
  row: rows_lib.Row, seconds: float, before: dict[str, Any]
) -> dict[str, Any]:
  """Returns a training's arguments, with as many epochs as its time allows.

  The speed is that of the same model in an earlier row; evaluation and
  compiling are taken to cost a third of the time, which Figure 2's rows share.
  """
  arguments = dict(row.arguments)
  if arguments.get('duration') != 'fit':
    return arguments
  speeds = [
    found['images_per_second']
    for name, found in before.items()
    if name.startswith('ours') and 'S/4' in name and found['status'] == 'done'
  ]
  rate = min(speeds, default=1000.0)
  waiting = [
    r for r in rows_lib.all_rows('full') if r.name.startswith('figure 2')
  ]
  waiting = [r for r in waiting if r.name not in before]
  share = seconds / max(len(waiting), 1) * 2 / 3
  epochs = max(int(share * rate / _EPOCH_IMAGES), 1)
  return arguments | {'duration': f'{epochs} epochs', 'eval.every': '25%'}


def _trained(
  workdir: pathlib.Path, results: pathlib.Path, row: rows_lib.Row
) -> dict[str, Any]:
  """Keeps the rows of a training's steps, and returns its evaluation."""
  kept = results / 'runs' / workdir.name
  kept.mkdir(parents=True, exist_ok=True)
  shutil.copy(workdir / 'diagnostics.csv', kept)
  evaluation = workdir / 'eval.json'
  found = json.loads(evaluation.read_text()) if evaluation.exists() else {}
  shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)
  return {'evaluation': found, 'diagnostics': f'runs/{workdir.name}'}


def machine() -> dict[str, Any]:
  """Returns what the numbers depend on: devices, driver, versions."""
  done = subprocess.run(
    [sys.executable, '-c', _DEVICES], capture_output=True, text=True
  )
  if done.returncode:
    sys.exit(f'error: jax finds no device:\n{done.stderr.strip()[-500:]}')
  found = json.loads(done.stdout.splitlines()[-1])
  found['python'] = platform.python_version()
  if shutil.which('nvidia-smi'):
    query = [
      'nvidia-smi',
      '--query-gpu=driver_version',
      '--format=csv,noheader',
    ]
    answer = subprocess.run(query, capture_output=True, text=True).stdout
    found['driver'] = answer.strip().splitlines()[:1]
  return found


def _write(path: pathlib.Path, found: dict[str, Any]) -> None:
  files.write_whole(path, f'{json.dumps(found, indent=1)}\n'.encode())


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m experiments.accelerator.run',
    description=__doc__.split('\n')[0],
  )
  parser.add_argument('--minutes', type=float, default=12.0)
  parser.add_argument('--scale', choices=('full', 'tiny'), default='full')
  parser.add_argument('--results', type=pathlib.Path, default=HERE)
  parser.add_argument(
    '--runs', type=pathlib.Path, default=runner.ROOT / 'runs' / 'accelerator'
  )
  for name in ('cifar10', 'cifar100'):
    parser.add_argument(
      f'--{name}', default='', help='folder:PATH, or a folder of TFDS sets.'
    )
  return parser


if __name__ == '__main__':
  main()
