"""Runs the cells of an experiment, one `python main.py ...` after another.

    python -m experiments.figure1_stability.run --scale=cpu --jobs=2

What is done stands in the experiment's results.json (results_full.json at full
scale), a row for each cell, written whole after each: stopped and started again
a sweep goes on, and the cell that was interrupted resumes from its checkpoint.
A cell whose command has changed since is run anew, in an empty workdir. When
nothing is left, the tables and plots are made from the rows.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vit22b_jax.data import files
from vit22b_jax.runtime import formats
from vit22b_jax.runtime import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parent.parent
# Of main.py: done, and stopped because training exploded, which is a result.
_RESULTS = (0, 3)
_POLL_SECONDS = 0.2

Row = dict[str, Any]
Rows = dict[str, Row]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of an experiment, as a rule of main.py.

  Attributes:
    name: unique within the experiment; its workdir's name.
    config: as --config takes it, FILE or FILE:words.
    keys: what --config.KEY=VALUE changes.
    facts: what the experiment calls it by, such as variant and rate.
    program: what python is given; it writes versions.json into the workdir.
  """

  name: str
  config: str = ''
  keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  program: tuple[str, ...] = ('main.py',)

  def arguments(self) -> list[str]:
    """Returns the program's arguments, but for the workdir."""
    config = [f'--config={self.config}'] if self.config else []
    keys = [f'--config.{key}={value}' for key, value in self.keys.items()]
    return [*config, *keys]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A table or figure of the paper.

  Attributes:
    name: its folder under experiments/.
    question: what it answers, one line.
    cells: (scale, rows so far) -> the cells known by now, in order. Later ones
      may depend on rows, as in a search.
    measure: (cell, workdir, results) -> the numbers of a finished run, for its
      row; files to keep go into the folder of the results.
    render: (results, folder, scale, rows) -> writes tables and plots of the
      rows into the folder.
    scales: those it has cells for.
    runs_of: the experiment whose runs it shows; '' for its own.
  """

  name: str
  question: str
  cells: Callable[[str, Rows], list[Cell]]
  measure: Callable[[Cell, pathlib.Path, pathlib.Path], Row]
  render: Callable[[pathlib.Path, pathlib.Path, str, Rows], None]
  scales: tuple[str, ...]
  runs_of: str = ''

  @property
  def folder(self) -> pathlib.Path:
    return ROOT / 'experiments' / self.name

  @property
  def results(self) -> pathlib.Path:
    return self.folder.with_name(self.runs_of or self.name)

  def missing(self, scale: str, rows: Rows) -> list[Cell]:
    """Returns the known cells of which the rows hold no such run, in order."""
    done = {name: row['arguments'] for name, row in rows.items()}
    known = self.cells(scale, rows)
    return [cell for cell in known if done.get(cell.name) != cell.arguments()]


def results_file(folder: pathlib.Path, scale: str) -> pathlib.Path:
  """Returns the file with the rows of a scale."""
  return folder / (
    'results.json' if scale == 'cpu' else f'results_{scale}.json'
  )


def read(path: pathlib.Path) -> Rows:
  """Returns the rows of a results file by names of cells; {} without one."""
  if not path.exists():
    return {}
  return {row['name']: row for row in json.loads(path.read_text())}


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
  """Writes a results file in one atomic step, a row a line."""
  lines = ',\n'.join(json.dumps(row, allow_nan=False) for row in rows)
  files.write_whole(path, f'[\n{lines}\n]\n'.encode())


class Sweep:
  """The cells of one scale, run `jobs` at a time.

  On Linux they share the cores out among themselves. `results` is the folder of
  the results file, `runs` that of the workdirs.
  """

  def __init__(
    self,
    experiment: Experiment,
    scale: str,
    results: pathlib.Path,
    runs: pathlib.Path,
    jobs: int,
  ):
    self._experiment = experiment
    self._scale = scale
    self._results = results
    self._path = results_file(results, scale)
    self._runs = runs / (experiment.runs_of or experiment.name)
    self._free = _shares(jobs)
    self._running: dict[str, _Run] = {}
    self.rows = read(self._path)

  def run(self) -> None:
    """Runs what is missing.

    Raises:
      RuntimeError: a run failed; the message names its log.
    """
    try:
      while self._start_missing() or self._running:
        time.sleep(_POLL_SECONDS)
        for run in list(self._running.values()):
          if run.reap(os.WNOHANG):
            del self._running[run.cell.name]
            self._free.append(run.cores)
            self._keep(run)
    finally:
      for run in self._running.values():
        # It saves, and is resumed another time. `terminate` would reap one
        # that has ended, of which `reap` could tell nothing then.
        os.kill(run.process.pid, signal.SIGTERM)
      for run in self._running.values():
        run.reap()

  def _start_missing(self) -> bool:
    """Starts what there is room for; whether anything was missing."""
    missing = [
      cell
      for cell in self._experiment.missing(self._scale, self.rows)
      if cell.name not in self._running
    ]
    for cell in missing[: len(self._free)]:
      workdir = self._runs / f'{self._scale}_{cell.name}'
      self._running[cell.name] = _Run(cell, workdir, self._free.pop())
    return bool(missing)

  def _keep(self, run: '_Run') -> None:
    """Adds a finished run's row; its checkpoints are of no more use."""
    cell, workdir = run.cell, run.workdir
    if run.process.returncode not in _RESULTS:
      raise RuntimeError(
        f'{cell.name} ended with code {run.process.returncode}:\n'
        f'{run.log.read_text()[-2000:]}\nThe whole log is {run.log}. When the '
        'cause is mended, the same command goes on.'
      )
    versions = formats.read_json(workdir / workdir_lib.VERSIONS)
    versions.pop('command', None)  # `arguments`, and a folder of this machine
    self.rows[cell.name] = {
      'name': cell.name,
      'arguments': cell.arguments(),
      **cell.facts,
      'exit_code': run.process.returncode,
      'seconds': round(run.seconds, 1),
      'cpu_seconds': round(run.cpu_seconds, 1),
      'cores': len(run.cores) or _num_cores(),
      'versions': versions,
      **self._experiment.measure(cell, workdir, self._results),
    }
    # In the order of the cells; those that aren't known any more come last.
    cells = self._experiment.cells(self._scale, self.rows)
    names = (*(cell.name for cell in cells), *self.rows)
    self.rows = {n: self.rows[n] for n in names if n in self.rows}
    write(self._path, self.rows.values())
    shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)
    run.note.unlink()  # another start begins anew
    print(
      f'{time.strftime("%H:%M:%S")} {self._experiment.name} {cell.name} '
      f'({self.rows[cell.name]["seconds"]:.0f} s)',
      flush=True,
    )


class _Run:
  """A process that trains one cell.

  It goes on in the workdir that an earlier start with the same arguments left
  unfinished.

  Attributes:
    note: beside the workdir, tells of a start that isn't finished.
    seconds: of this start and those before it, once it has ended.
    cpu_seconds: what it computed in them, on all cores together; less than it
      waited where others had the cores.
  """

  def __init__(self, cell: Cell, workdir: pathlib.Path, cores: set[int]):
    self.cell = cell
    self.workdir = workdir
    self.cores = cores
    self.log = workdir.with_name(f'{workdir.name}.log')
    self.note = workdir.with_name(f'{workdir.name}.started.json')
    workdir.parent.mkdir(parents=True, exist_ok=True)
    self.seconds, self.cpu_seconds = self._seconds_before()
    self._start = time.monotonic()
    self._write_note()
    command = [
      sys.executable,
      *cell.program,
      *cell.arguments(),
      f'--workdir={workdir.absolute()}',
    ]
    with self.log.open('a') as log:
      log.write(f'$ {shlex.join(command)}\n')
      log.flush()
      self.process = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
      )
    if cores:
      os.sched_setaffinity(self.process.pid, cores)

  def reap(self, options: int = 0) -> bool:
    """Waits for the process's end, or with WNOHANG tells whether it is over.

    Then its seconds are known, and noted for a later start to go on from.
    """
    pid, status, usage = os.wait4(self.process.pid, options)
    if not pid:
      return False
    self.process.returncode = os.waitstatus_to_exitcode(status)
    self.seconds += time.monotonic() - self._start
    self.cpu_seconds += usage.ru_utime + usage.ru_stime
    self._write_note()
    return True

  def _seconds_before(self) -> tuple[float, float]:
    """Returns seconds of earlier starts; removes another run's workdir."""
    if self.note.exists():
      note = json.loads(self.note.read_text())
      if note['arguments'] == self.cell.arguments():
        return note['seconds'], note.get('cpu_seconds', 0.0)
    shutil.rmtree(self.workdir, ignore_errors=True)
    return 0.0, 0.0

  def _write_note(self) -> None:
    note = {
      'arguments': self.cell.arguments(),
      'seconds': self.seconds,
      'cpu_seconds': self.cpu_seconds,
    }
    self.note.write_text(json.dumps(note))


def _num_cores() -> int | None:
  """Returns the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _shares(jobs: int) -> list[set[int]]:
  """Returns the cores of each job; empty sets where they are not shared out."""
  if jobs == 1 or not hasattr(os, 'sched_getaffinity'):
    return [set() for _ in range(jobs)]
  cores = sorted(os.sched_getaffinity(0))
  return [set(cores[i::jobs]) or set(cores) for i in range(jobs)]


def parser(experiment: Experiment) -> argparse.ArgumentParser:
  """Returns the command line of an experiment."""
  made = argparse.ArgumentParser(
    prog=f'python -m experiments.{experiment.name}.run',
    description=experiment.question,
  )
  made.add_argument(
    '--scale',
    choices=experiment.scales,
    default='cpu',
    help='cpu: what two cores manage; real: a day of them, on the real sets; '
    'full: as the paper, on an accelerator.',
  )
  made.add_argument(
    '--jobs', type=int, default=1, help='Runs at a time (default: 1).'
  )
  made.add_argument(
    '--results',
    type=pathlib.Path,
    help='Folder of results; another one begins anew (default: '
    f'experiments/{experiment.results.name}).',
  )
  made.add_argument(
    '--runs',
    type=pathlib.Path,
    default=ROOT / 'runs' / 'experiments',
    help='Folder of the workdirs (default: runs/experiments).',
  )
  return made


def main(experiment: Experiment, argv: list[str] | None = None) -> None:
  """Runs what is missing of an experiment, then makes its tables and plots."""
  flags = parser(experiment)
  given = flags.parse_args(argv)
  if given.jobs < 1:
    flags.error(f'--jobs={given.jobs}: give 1 or more.')
  results = given.results or experiment.results
  results.mkdir(parents=True, exist_ok=True)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  sweep = Sweep(experiment, given.scale, results, given.runs, given.jobs)
  try:
    sweep.run()
  except KeyboardInterrupt:
    sys.exit('Stopped: the same command goes on.')
  except RuntimeError as error:
    sys.exit(f'error: {error}')
  folder = given.results or experiment.folder
  experiment.render(results, folder, given.scale, sweep.rows)
