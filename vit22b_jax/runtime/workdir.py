"""The files of a run: configuration, versions, and tables that grow.

    run = workdir.Workdir('runs/cifar100_vit22b_s', tensorboard=True)
    run.write_json('config.json', {...})
    run.metrics(step, {'train/loss': 1.2})
    run.diagnostics(step, {'loss': 1.2, 'max_logit': 3.0})
    run.truncate(step)   # a resumed run forgets rows after its checkpoint

Paths may be `gs://...` (Orbax and TensorStore write checkpoints to no other
remote disk). Object stores can't append, so files that grow are kept in a local
folder then, and uploaded whole at each flush.
"""

import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8

from vit22b_jax import errors

CONFIG = 'config.json'
VERSIONS = 'versions.json'
CLASSES = 'classes.json'
METRICS = 'metrics.jsonl'
DIAGNOSTICS = 'diagnostics.csv'
EVENTS = 'events.jsonl'
EVAL = 'eval.json'
PREDICTIONS = 'predictions.npz'
SAMPLES = 'samples'  # a folder of DIRECTION_STEP.png


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

  Lines wait in memory until `flush`, which adds all of them or, when the disk
  is full, none: the file always ends with a whole line.

  Args:
    path: local or remote; created at the first flush.
  """

  def __init__(self, path: epath.PathLike):
    self._path = epath.Path(path)
    self._local = pathlib.Path(os.fspath(self._path))
    self._remote = is_remote(self._path)
    if self._remote:
      folder = pathlib.Path(tempfile.mkdtemp(prefix='vit22b_jax_'))
      self._local = folder / self._path.name
      if self._path.exists():
        self._local.write_bytes(self._path.read_bytes())
    self._waiting: list[str] = []

  def lines(self) -> list[str]:
    """The whole lines so far; a last one cut off by a crash is left out."""
    self.flush()
    if not self._local.exists():
      return []
    text = self._local.read_text()
    return [line for line in text.split('\n')[:-1] if line]

  def append(self, line: str) -> None:
    self._waiting.append(line + '\n')

  def replace(self, lines: list[str]) -> None:
    """Makes `lines` the whole content, in one atomic step."""
    self._waiting.clear()
    content = ''.join(line + '\n' for line in lines).encode()
    if self._local.exists() and self._local.read_bytes() == content:
      return
    new = self._local.with_name(self._local.name + '.new')
    new.write_bytes(content)
    new.replace(self._local)
    self._upload()

  def flush(self) -> None:
    """Adds the lines that wait to the file, and uploads it if it is remote.

    Raises:
      OSError: the disk is full or gone; the lines keep waiting.
    """
    if not self._waiting:
      return
    before = self._local.stat().st_size if self._local.exists() else 0
    try:
      with self._local.open('ab') as file:
        file.write(''.join(self._waiting).encode())
    except OSError:
      if self._local.exists():
        os.truncate(self._local, before)
      raise
    self._waiting.clear()
    self._upload()

  def _upload(self) -> None:
    if self._remote:
      self._path.write_bytes(self._local.read_bytes())


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
    self._has_columns = False
    self._tensorboard = _TensorBoard(self.path) if tensorboard else None

  def write_json(self, name: str, content: Any) -> None:
    text = json.dumps(_strict(content), indent=2, allow_nan=False)
    self.write_bytes(name, f'{text}\n'.encode())

  def write_bytes(self, name: str, content: bytes) -> None:
    """Writes a whole file, in one atomic step where the file system can."""
    if not self._writer:
      return
    with _explained(self.path):
      if is_remote(self.path):
        (self.path / name).write_bytes(content)
      else:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        new = self.path / f'{name}.new'
        new.write_bytes(content)
        new.replace(self.path / name)

  def metrics(self, step: int, row: dict[str, float]) -> None:
    """Adds a row to metrics.jsonl and to the TensorBoard events."""
    if not self._writer:
      return
    self._files[METRICS].append(_line({'step': step, **row}))
    if self._tensorboard:
      finite = {k: v for k, v in row.items() if math.isfinite(v)}
      self._tensorboard.put('write_scalars', step, finite)

  def image(self, name: str, step: int, image: UInt8[np.ndarray, 'H W 3']):
    """Adds a picture to the TensorBoard events."""
    if self._writer and self._tensorboard:
      self._tensorboard.put('write_images', step, {name: image[None]})

  def diagnostics(self, step: int, row: dict[str, float]) -> None:
    """Adds a row to diagnostics.csv: 9 significant digits, exact in float32."""
    if not self._writer:
      return
    if not self._has_columns:
      if not self._files[DIAGNOSTICS].lines():
        self._files[DIAGNOSTICS].append(','.join(['step', *row]))
      self._has_columns = True
    values = [f'{value:.9g}' for value in row.values()]
    self._files[DIAGNOSTICS].append(','.join([str(step), *values]))

  def event(self, row: dict[str, Any]) -> None:
    """Adds a row to events.jsonl."""
    if self._writer:
      self._files[EVENTS].append(_line(row))

  def truncate(self, step: int) -> None:
    """Drops rows and samples of later steps: the run goes on from `step`."""
    if not self._writer:
      return
    self._has_columns = False
    if self._tensorboard:
      self._tensorboard.done = step
    with _explained(self.path):
      for name in (METRICS, EVENTS):
        lines = self._files[name].lines()
        self._keep(name, [x for x in lines if json.loads(x)['step'] <= step])
      header, *rows = self._files[DIAGNOSTICS].lines() or ['']
      kept = [row for row in rows if int(row.split(',', 1)[0]) <= step]
      self._keep(DIAGNOSTICS, [header, *kept] if kept else [])
      for picture in (self.path / SAMPLES).glob('*.png'):
        number = picture.stem.rpartition('_')[2]
        if number.isdecimal() and int(number) > step:
          picture.unlink()

  def forget_evaluation(self) -> None:
    """Drops what was evaluated at an earlier end: the run goes on."""
    if self._writer:
      with _explained(self.path):
        for name in (EVAL, PREDICTIONS):
          (self.path / name).unlink(missing_ok=True)

  def _keep(self, name: str, lines: list[str]) -> None:
    if lines or (self.path / name).exists():
      self._files[name].replace(lines)

  def flush(self) -> None:
    """Makes every row so far durable, before a checkpoint relies on it."""
    if self._writer:
      with _explained(self.path):
        for file in self._files.values():
          file.flush()

  def close(self) -> None:
    if self._writer:
      self.flush()
      if self._tensorboard:
        self._tensorboard.close()


class _TensorBoard:
  """clu's writer on a thread of its own: it imports TensorFlow for seconds.

  Attributes:
    done: the step that this start begins after.
  """

  def __init__(self, path: epath.Path):
    self._path = path
    self.done = 0
    self._rows: queue.Queue = queue.Queue()
    self._thread: threading.Thread | None = None

  def put(self, method: str, *arguments: Any) -> None:
    """Calls a method of the writer later, `write_scalars` or `write_images`."""
    if self._thread is None:
      self._thread = threading.Thread(target=self._work, daemon=True)
      self._thread.start()
    self._rows.put((method, arguments))

  def close(self) -> None:
    if self._thread is not None:
      self._rows.put(None)
      self._thread.join()

  def _work(self) -> None:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # and its notice
    item: Any = ()
    try:
      from clu import metric_writers

      self._open_session()  # in a file that is read before the next
      writer = metric_writers.SummaryWriter(os.fspath(self._path))
      while (item := self._rows.get()) is not None:
        method, arguments = item
        getattr(writer, method)(*arguments)
        if self._rows.empty():
          writer.flush()
      writer.close()
    except Exception as error:  # A convenience: a run mustn't end for it.
      reason = str(error).split('\n')[0]
      logging.warning('No more TensorBoard events are written: %s', reason)
      while item is not None:
        item = self._rows.get()

  def _open_session(self) -> None:
    """Has TensorBoard drop what a crashed start wrote after `done`.

    Each session but the first does, see `_CheckForRestartAndMaybePurge` in
    tensorboard/backend/event_processing/plugin_event_accumulator.py.
    """
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer import event_file_writer

    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    event = event_pb2.Event(
      wall_time=time.time(), step=self.done + 1, session_log=log
    )
    writer = event_file_writer.EventFileWriter(os.fspath(self._path))
    writer.add_event(event)
    writer.close()


class _explained:
  """Turns an OSError on the workdir into an error that says what to do."""

  def __init__(self, path: epath.Path):
    self._path = path

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, OSError):
      raise errors.UserError(
        f'Could not write to the workdir {self._path}: '
        f'{error.strerror or error}. Make room or choose another --workdir; '
        'checkpoints written before are whole, and the same command resumes '
        'from the newest.'
      ) from error


def _check_writable(path: epath.Path) -> None:
  if is_remote(path) and not os.fspath(path).startswith('gs://'):
    raise errors.UserError(
      f'--workdir={path}: checkpoints can be kept on local disks and gs:// '
      'alone; mount other storage, or copy the folder there afterwards.'
    )
  with _explained(path):
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.probe_{os.getpid()}'
    probe.write_text('x')
    probe.unlink()


def _strict(content: Any) -> Any:
  """JSON has no NaN and infinity: they become text, as 'nan' and 'inf'."""
  if isinstance(content, Mapping):
    return {key: _strict(value) for key, value in content.items()}
  if isinstance(content, list | tuple):
    return [_strict(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return str(content)
  return content


def _line(row: dict[str, Any]) -> str:
  return json.dumps(_strict(row), allow_nan=False)


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
