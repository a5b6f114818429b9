"""Measures this project on the machine's accelerator, most valuable first.

    python -m experiments.accelerator.run --minutes=9 \
      --cifar10=folder:PATH --cifar100=folder:PATH
    python -m experiments.accelerator.run --scale=tiny --results=FOLDER

Every row (see `rows`) is written to results.json as soon as it ends, and
results.md at the end. Stopped at any moment and started again, the command goes
on with the rows that are missing, failed or ran out of time.
"""

import argparse
import functools
import json
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from experiments import runner
from experiments.accelerator import rows as rows_lib
from experiments.accelerator import tables
from experiments.figure1_stability import measure as figure1
from vit22b_jax.data import files
from vit22b_jax.runtime import runs

HERE = pathlib.Path(__file__).parent
_RESERVE = 5.0  # seconds to write results in
# Fails where timm's rows can't run on this machine's GPU.
_PEERS = 'import timm, torch; assert torch.cuda.is_available()'
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
  devices = found['machine']['devices']
  if given.scale == 'full' and all(d.startswith('cpu:') for d in devices):
    sys.exit('error: jax finds no accelerator; --scale=tiny tries a CPU.')
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
    if row.kind == 'peer' and not has_peers(given.scale):
      print(f'{row.name}: needs timm, and torch with CUDA')
      continue
    started = time.monotonic()
    result = measure(row, min(left, row.limit), given, source)
    earlier = found['rows'].get(row.name, {})
    if result['status'] == 'failed' and earlier.items() >= setting.items():
      result = earlier | result  # what a training had come to
    result |= setting
    result['seconds'] = round(time.monotonic() - started, 1)
    found['rows'][row.name] = result
    _write(path, found)
    print(f'{row.name}: {result["status"]} in {result["seconds"]} s')
  _write(path, found)
  tables.write(given.results)


@functools.cache
def has_peers(scale: str) -> bool:
  """Returns whether timm is there and, at full scale, runs on a GPU."""
  command = [sys.executable, '-c', _PEERS]
  if scale == 'tiny':
    command[-1] = _PEERS.partition(';')[0]
  return not subprocess.run(command, capture_output=True).returncode


def _is_done(row: dict[str, Any], setting: dict[str, Any]) -> bool:
  """Returns whether a row was measured on this machine, at this scale."""
  return row.get('status') == 'done' and row.items() >= setting.items()


def measure(
  row: rows_lib.Row, seconds: float, given: argparse.Namespace, source: str
) -> dict[str, Any]:
  """Runs a row in a process of its own.

  Args:
    row: what to measure.
    seconds: after which the process is stopped.
    given: the command line.
    source: of a training's images; '' where none are needed.

  Returns:
    `status` ('done', 'failed' or 'out of time'), `arguments`, and what was
    measured or the `error`. A training out of time leaves what it has come to,
    and its workdir, from which it goes on; a failed one its workdir.
  """
  arguments = dict(row.arguments)
  workdir = given.runs / given.scale / re.sub(r'\W+', '_', row.name)
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder) / 'row.json'
    if row.kind == 'train':
      command = _training(arguments, source, workdir)
    else:
      module = 'experiments.accelerator.measure'
      command = ['-m', module, row.kind, json.dumps(arguments), str(output)]
    result = {'arguments': arguments, 'status': 'done'}
    try:
      done = subprocess.run(
        [sys.executable, *command],
        cwd=runner.ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
      )
    except subprocess.TimeoutExpired:
      result['status'] = 'out of time'
      return result | (_trained(workdir) if row.kind == 'train' else {})
    # A training that exploded under `halt` ends with 3, which is a result.
    if done.returncode not in (0, 3):
      error = (done.stderr or done.stdout).strip().splitlines()[-3:]
      result |= {'status': 'failed', 'error': '\n'.join(error)}
    elif row.kind == 'train':
      result |= _trained(workdir)
    else:
      result |= json.loads(output.read_text())
  if result['status'] == 'done':
    shutil.rmtree(workdir, ignore_errors=True)
  return result


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


def _trained(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what a training has come to; {} before its first rows."""
  if not (workdir / 'diagnostics.csv').exists():
    return {}
  run = runs.read(workdir)
  if not len(run.diagnostics.get('step', ())):
    return {}
  _, top1 = run.metric('val/top1')
  return {
    'steps': run.last_step,
    'stability': figure1.measure(workdir),
    'validated': top1[-1].item() if len(top1) else None,
    'evaluation': run.evaluation,
  }


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
  parser.add_argument('--minutes', type=float, default=9.0)
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
