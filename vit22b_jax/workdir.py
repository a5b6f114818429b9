"""The files of a run: configuration, versions, and tables that grow.

    run = workdir.Workdir('runs/cifar100_vit22b_s', tensorboard=True)
    run.write_json('config.json', {...})
    run.metrics(step, {'train/loss': 1.2})
    run.diagnostics(step, {'loss': 1.2, 'max_logit': 3.0})
    run.truncate(step)   # a resumed run forgets rows after its checkpoint

Paths may be `gs://...`. Object stores can't append, so files that grow are kept
in a local folder there and uploaded whole at each flush.
"""

import csv
import functools
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import queue
import subprocess
import tempfile
import threading
from typing import Any

from absl import logging
from etils import epath

from vit22b_jax import errors

CONFIG = 'config.json'
VERSIONS = 'versions.json'
CLASSES = 'classes.json'
METRICS = 'metrics.jsonl'
DIAGNOSTICS = 'diagnostics.csv'
EVENTS = 'events.jsonl'


def is_remote(path: epath.PathLike) -> bool:
  """Whether `path` has a scheme, as `gs://bucket/folder` does."""
  return '://' in os.fspath(path)


def read_text(workdir: epath.PathLike, name: str) -> str | None:
  """The content of a file of a run, or None where there's none."""
  path = epath.Path(workdir) / name
  return path.read_text() if path.exists() else None


def read_json(workdir: epath.PathLike, name: str) -> Any | None:
  """The content of a JSON file of a run, or None where there's none."""
  text = read_text(workdir, name)
  return None if text is None else json.loads(text)


class GrowingFile:
  """A text file that gets lines added and keeps those it had.

  Args:
    path: local or remote; created at the first line.
  """

  def __init__(self, path: epath.PathLike):
    self._path = epath.Path(path)
    self._remote = is_remote(self._path)
    if self._remote:
      folder = pathlib.Path(tempfile.mkdtemp(prefix='vit22b_jax_'))
      self._local = folder / self._path.name
      if self._path.exists():
        self._local.write_bytes(self._path.read_bytes())
    else:
      self._local = pathlib.Path(os.fspath(self._path))
    self._changed = False
    self._file = None

  def lines(self) -> list[str]:
    """The whole lines so far; a last one cut off by a crash is left out."""
    self.flush()
    if not self._local.exists():
      return []
    text = self._local.read_text()
    return [line for line in text.split('\n')[:-1] if line]

  def append(self, line: str) -> None:
    if self._file is None:
      self._file = self._local.open('a')
    self._file.write(line + '\n')
    self._changed = True

  def replace(self, lines: list[str]) -> None:
    """Makes `lines` the whole content, in one atomic step."""
    self.close()
    new = self._local.with_name(self._local.name + '.new')
    new.write_text(''.join(line + '\n' for line in lines))
    new.replace(self._local)
    self._changed = True
    self.flush()

  def flush(self) -> None:
    if self._file is not None:
      self._file.flush()
    if self._remote and self._changed:
      self._path.write_bytes(self._local.read_bytes())
    self._changed = False

  def close(self) -> None:
    self.flush()
    if self._file is not None:
      self._file.close()
      self._file = None


class Workdir:
  """A run's folder.

  Args:
    path: local or `gs://`; made if missing.
    tensorboard: write the metrics as TensorBoard events as well.
    writer: whether this process writes files (one process of several does).

  Raises:
    UserError: the folder can't be made or written.
  """

  def __init__(
    self, path: epath.PathLike, *, tensorboard: bool = False, writer=True
  ):
    self.path = epath.Path(path)
    self._writer = writer
    if not writer:
      return
    _check_writable(self.path)
    self._files = {
      name: GrowingFile(self.path / name)
      for name in (METRICS, DIAGNOSTICS, EVENTS)
    }
    self._columns: list[str] = []
    self._tensorboard = _TensorBoard(self.path) if tensorboard else None

  def write_json(self, name: str, content: Any) -> None:
    if self._writer:
      self.write_bytes(name, (json.dumps(content, indent=2) + '\n').encode())

  def write_bytes(self, name: str, content: bytes) -> None:
    """Writes a whole file, in one atomic step where the file system can."""
    if not self._writer:
      return
    with _explained(self.path):
      if is_remote(self.path):
        (self.path / name).write_bytes(content)
      else:
        new = self.path / f'{name}.new'
        new.write_bytes(content)
        new.replace(self.path / name)

  def metrics(self, step: int, row: dict[str, float]) -> None:
    """Adds a row to metrics.jsonl and to the TensorBoard events."""
    if not self._writer:
      return
    self._append(METRICS, json.dumps({'step': step, **row}))
    if self._tensorboard:
      finite = {k: v for k, v in row.items() if math.isfinite(v)}
      self._tensorboard.write(step, finite)

  def diagnostics(self, step: int, row: dict[str, float]) -> None:
    """Adds a row to diagnostics.csv: 9 significant digits, exact in float32.

    Raises:
      UserError: the file has other columns (per-layer columns were switched).
    """
    if not self._writer:
      return
    columns = ['step', *row]
    if columns != self._columns:
      header = ','.join(columns)
      lines = self._files[DIAGNOSTICS].lines()
      if not lines:
        self._append(DIAGNOSTICS, header)
      elif lines[0] != header:
        # Columns came or went with a resumed run: old rows keep their values.
        self._files[DIAGNOSTICS].replace(_recolumned(lines, columns))
      self._columns = columns
    values = [f'{value:.9g}' for value in row.values()]
    self._append(DIAGNOSTICS, ','.join([str(step), *values]))

  def event(self, row: dict[str, Any]) -> None:
    """Adds a row to events.jsonl."""
    if self._writer:
      self._append(EVENTS, json.dumps(row))

  def truncate(self, step: int) -> None:
    """Drops the rows of later steps: the run starts again from `step`."""
    if not self._writer:
      return
    for name in (METRICS, EVENTS):
      lines = self._files[name].lines()
      kept = [line for line in lines if json.loads(line)['step'] <= step]
      if kept != lines:
        self._files[name].replace(kept)
    lines = self._files[DIAGNOSTICS].lines()
    kept = lines[:1] + [x for x in lines[1:] if int(x.split(',', 1)[0]) <= step]
    if kept != lines:
      self._files[DIAGNOSTICS].replace(kept)

  def flush(self) -> None:
    """Makes every row so far durable, before a checkpoint relies on it."""
    if self._writer:
      with _explained(self.path):
        for file in self._files.values():
          file.flush()

  def close(self) -> None:
    if self._writer:
      with _explained(self.path):
        for file in self._files.values():
          file.close()
      if self._tensorboard:
        self._tensorboard.close()

  def _append(self, name: str, line: str) -> None:
    with _explained(self.path):
      self._files[name].append(line)


class _TensorBoard:
  """clu's writer on a thread of its own: it imports TensorFlow for seconds."""

  def __init__(self, path: epath.Path):
    self._path = path
    self._rows: queue.Queue = queue.Queue()
    self._thread: threading.Thread | None = None

  def write(self, step: int, row: dict[str, float]) -> None:
    if self._thread is None:
      self._thread = threading.Thread(target=self._work, daemon=True)
      self._thread.start()
    self._rows.put((step, row))

  def close(self) -> None:
    if self._thread is not None:
      self._rows.put(None)
      self._thread.join()

  def _work(self) -> None:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # and its notice
    try:
      from clu import metric_writers

      writer = metric_writers.SummaryWriter(os.fspath(self._path))
      while (item := self._rows.get()) is not None:
        writer.write_scalars(*item)
        if self._rows.empty():
          writer.flush()
      writer.close()
    except Exception:  # Events are a convenience: a run mustn't end for them.
      logging.exception('No more TensorBoard events: writing them failed.')
      while self._rows.get() is not None:
        pass


class _explained:
  """Turns an OSError on the workdir into an error that says what to do."""

  def __init__(self, path: epath.Path):
    self._path = path

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, OSError):
      raise errors.UserError(
        f'Could not write to the workdir {self._path}: {error.strerror or error}'
        '. Make room or choose another --workdir; checkpoints written before '
        'are whole, and the same command resumes from the newest.'
      ) from error


def _check_writable(path: epath.Path) -> None:
  with _explained(path):
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.probe_{os.getpid()}'
    probe.write_text('x')
    probe.unlink()


def _recolumned(lines: list[str], columns: list[str]) -> list[str]:
  out = io.StringIO()
  writer = csv.DictWriter(
    out, columns, restval='nan', extrasaction='ignore', lineterminator='\n'
  )
  writer.writeheader()
  writer.writerows(csv.DictReader(lines))
  return out.getvalue().splitlines()


@functools.cache
def _git_commit() -> str | None:
  """The checkout's commit, with '-dirty' where files differ; None elsewhere."""
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40']
  folder = pathlib.Path(__file__).parent
  try:
    done = subprocess.run(
      command, cwd=folder, capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def versions(devices: list[str]) -> dict[str, Any]:
  """What the run ran on, for versions.json.

  Args:
    devices: a description of each accelerator.
  """
  found = {}
  for name in (
    'vit22b_jax',
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'numpy',
  ):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None  # run from a checkout that isn't installed
  return {
    'package': found.pop('vit22b_jax'),
    'git_commit': _git_commit(),
    **found,
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpus': os.cpu_count(),
    'devices': devices,
  }
