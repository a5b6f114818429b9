"""Writes the folder of a run; `runs` reads it.

    folder = workdir.Workdir('runs/cifar100_vit22b_s', tensorboard=True)
    folder.write_json('config.json', {...})
    folder.metrics(step, {'train/loss': 1.2})
    folder.diagnostics(step, {'loss': 1.2, 'max_logit': 3.0})
    folder.truncate(step)   # a resumed run forgets rows after its checkpoint

Paths may be `gs://...` (Orbax and TensorStore write checkpoints to no other
remote disk). Never imports jax.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

import vit22b_jax
from vit22b_jax import errors, rules
from vit22b_jax.data import files
from vit22b_jax.runtime import formats, trackers

CONFIG = 'config.json'
VERSIONS = 'versions.json'
CLASSES = 'classes.json'
DATA = 'data.json'
METRICS = 'metrics.jsonl'
DIAGNOSTICS = 'diagnostics.csv'
EVENTS = 'events.jsonl'
EVAL = 'eval.json'
PROBE = 'probe.json'
PREDICTIONS = 'predictions.npz'
ATTENTION = 'attention.npz'
SAMPLES = 'samples'  # a folder of DIRECTION_STEP.png
# Columns of diagnostics.csv that trackers get, as peaks since the last row.
_BUCKET_PACKAGES = ('tensorflow', 'gcsfs')  # of which etils takes one
_TRACKED = {'max_logit', 'max_abs_grad', 'grad_norm'}


def validate_place(path: epath.PathLike) -> None:
  """Raises UserError for storage other than local disks and `gs://`.

  That also needs a package that speaks to it.
  """
  text = os.fspath(path)
  is_bucket = text.startswith('gs://')
  if '\0' in text or (re.match(r'\w+://', text) and not is_bucket):
    raise errors.UserError(
      f'{text!r}: files are kept on local disks and gs:// alone; mount other '
      'storage, or copy the folder there afterwards.'
    )
  if is_bucket and not any(map(importlib.util.find_spec, _BUCKET_PACKAGES)):
    raise errors.UserError(
      f'{text}: gs:// needs TensorFlow or gcsfs, and neither is installed: '
      "pip install '.[tensorflow]' beside the other extras, or gcsfs."
    )


class GrowingFile:
  """A text file that gets lines added and keeps those it had.

  Lines wait in memory until `flush`, which adds all of them or, when the disk
  is full, none: the file always ends with a whole line. It is local or remote,
  and created at the first flush.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)
    self._waiting: list[str] = []
    self._remote: bytes | None = None  # what a remote file holds
    if files.is_remote(self.path):
      self._remote = self.path.read_bytes() if self.path.exists() else b''

  def lines(self) -> list[str]:
    """Returns the whole lines so far; leaves out one cut off by a crash."""
    self.flush()
    content = formats.read_bytes(self.path) or b''
    with formats.judging(self.path):
      text = content.decode()
    return [line for line in text.split('\n')[:-1] if line]

  def append(self, line: str) -> None:
    self._waiting.append(line + '\n')

  def truncate(self, step: int) -> None:
    """Drops the lines of later steps, in one atomic step.

    A header without any other line goes too: columns may have changed.
    """
    header, kept = [], []
    for number, line in enumerate(self.lines(), 1):
      with formats.judging(self.path, f'line {number}'):
        if line.startswith('step,'):
          header = [line]
        elif formats.step_of(line) <= step:
          kept.append(line)
    lines = header + kept if kept else []
    content = ''.join(line + '\n' for line in lines).encode()
    if self.path.exists() and self.path.read_bytes() != content:
      files.write_whole(self.path, content)
    if self._remote is not None:
      self._remote = content

  def flush(self) -> None:
    """Adds the lines that wait to the file.

    Raises:
      OSError: the disk is full or gone; the lines keep waiting.
    """
    if not self._waiting:
      return
    new = ''.join(self._waiting).encode()
    if self._remote is not None:  # object stores can't append
      self.path.write_bytes(self._remote + new)
      self._remote += new
    else:
      # Without a buffer, which closing would write after all.
      with pathlib.Path(self.path).open('ab', buffering=0) as file:
        before, rest = file.tell(), memoryview(new)
        try:
          while rest:
            rest = rest[file.write(rest) :]
        except OSError:
          os.truncate(self.path, before)
          raise
    self._waiting.clear()


class Workdir:
  """A run's folder, to write to.

  Args:
    path: local or `gs://`; made if missing.
    tensorboard: write scalars and images as TensorBoard events as well.
    wandb: the project of Weights & Biases that gets them too; '' for none.
    writer: whether this process writes files (one process of several does).

  Raises:
    UserError: the folder can't be made or written.
  """

  def __init__(
    self,
    path: epath.PathLike,
    *,
    tensorboard: bool = False,
    wandb: str = '',
    writer: bool = True,
  ):
    self.path = epath.Path(path)
    self._writer = writer
    if not writer:
      return
    validate_place(self.path)
    with explaining(self.path):
      self.path.mkdir(parents=True, exist_ok=True)
      probe = self.path / f'.probe_{os.getpid()}'
      probe.write_text('x')
      probe.unlink()
    self._files = {
      name: GrowingFile(self.path / name)
      for name in (METRICS, DIAGNOSTICS, EVENTS)
    }
    self._has_columns = False
    self._peaks: dict[str, float] = {}
    self._trackers = trackers.Trackers(
      self.path, tensorboard=tensorboard, wandb=wandb
    )

  def write_json(self, name: str, content: Any) -> None:
    text = json.dumps(formats.strict(content), indent=2, allow_nan=False)
    self.write_bytes(name, f'{text}\n'.encode())
    if name == EVAL and self._writer and 'step' in content:
      split, step = f'{content["split"]}/', content['step']
      numbers = {
        split + k: v for k, v in content.items() if isinstance(v, float)
      }
      self._trackers.scalars(step, numbers)
      name = f'{split}predictions'
      self._trackers.predictions(name, step, self.path / PREDICTIONS)

  def write_bytes(self, name: str, content: bytes) -> None:
    """Writes a whole file, in one atomic step where the file system can."""
    if not self._writer:
      return
    with explaining(self.path):
      target = self.path / name
      if not files.is_remote(target):  # object stores have no folders
        target.parent.mkdir(parents=True, exist_ok=True)
      files.write_whole(target, content)
    if name == CONFIG:
      self._trackers.choices = rules.flatten(json.loads(content))

  def metrics(self, step: int, row: dict[str, float]) -> None:
    """Adds a row to metrics.jsonl and to what trackers get."""
    if self._writer:
      self._files[METRICS].append(formats.line({'step': step, **row}))
      self._trackers.scalars(step, row | self._peaks)
      self._peaks = {}

  def diagnostics(self, step: int, row: dict[str, float]) -> None:
    """Adds a row to diagnostics.csv: 9 significant digits, exact in float32."""
    if not self._writer:
      return
    for name in _TRACKED & row.keys():
      key = f'diagnostics/{name}'
      self._peaks[key] = max(self._peaks.get(key, -math.inf), row[name])
    file = self._files[DIAGNOSTICS]
    if not self._has_columns and not file.lines():
      file.append(','.join(['step', *row]))
    self._has_columns = True
    values = [f'{value:.9g}' for value in row.values()]
    file.append(','.join([str(step), *values]))

  def event(self, row: dict[str, Any]) -> None:
    """Adds a row to events.jsonl."""
    if self._writer:
      self._files[EVENTS].append(formats.line(row))

  def image(
    self, name: str, step: int, image: UInt8[np.ndarray, 'H W 3']
  ) -> None:
    """Gives an image to trackers; files of images are `write_bytes`' part."""
    if self._writer:
      self._trackers.image(name, step, image)

  def truncate(self, step: int) -> None:
    """Drops rows and samples of later steps: the run goes on from `step`.

    Raises:
      errors.UserError: a file is damaged, or can't be written.
    """
    if not self._writer:
      return
    self._has_columns = False
    self._trackers.done = step
    with explaining(self.path):
      for file in self._files.values():
        file.truncate(step)
      for picture in (self.path / SAMPLES).glob('*.png'):
        number = picture.stem.rpartition('_')[2]
        if number.isdecimal() and int(number) > step:
          picture.unlink()

  def forget_evaluation(self) -> None:
    """Drops what was evaluated at an earlier end: the run goes on."""
    if self._writer:
      with explaining(self.path):
        for name in (EVAL, PREDICTIONS, ATTENTION):
          (self.path / name).unlink(missing_ok=True)

  def flush(self, remote: bool = True) -> None:
    """Makes every row so far durable, before a checkpoint relies on it.

    Object stores take a file whole each time: rows that nothing relies on yet
    can wait, `remote=False`.
    """
    if self._writer and (remote or not files.is_remote(self.path)):
      with explaining(self.path):
        for file in self._files.values():
          file.flush()

  def close(self) -> None:
    if self._writer:
      self.flush()
      self._trackers.close()


@contextlib.contextmanager
def explaining(path: epath.Path) -> Iterator[None]:
  """Turns an OSError on the workdir into an error that says what to do."""
  try:
    yield
  except OSError as error:
    saved = ''
    if os.path.isdir(path / 'checkpoints'):
      saved = (
        'Checkpoints written before are whole, and the same command resumes '
        'from the newest.'
      )
    raise errors.UserError(
      f'Could not write to the workdir {path}: {error.strerror or error}. '
      f'{errors.disk_remedy(error)}{saved}'.strip()
    ) from error


def _git_commit() -> str | None:
  """Returns the checkout's commit, '-dirty' where files differ, or None.

  Installed within somebody's repository the package isn't one of its files.
  """
  own = pathlib.Path(__file__)
  ask = {'cwd': own.parent, 'stderr': subprocess.DEVNULL, 'timeout': 10}
  tracked = ['git', 'ls-files', '--error-unmatch', own.name]
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40']
  try:
    subprocess.check_output(tracked, **ask)
    return subprocess.check_output(command, text=True, **ask).strip()
  except (OSError, subprocess.SubprocessError):
    return None


def versions(devices: list[str]) -> dict[str, Any]:
  """Returns the content of versions.json: software, machine, command."""
  libraries = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
  libraries += ('grain', 'numpy')
  return {
    'package': vit22b_jax.__version__,
    'git_commit': _git_commit(),
    **{name: importlib.metadata.version(name) for name in libraries},
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpus': os.cpu_count(),
    'devices': devices,
    'command': _command(sys.argv),
  }


def _command(arguments: list[str]) -> str | None:
  """Returns the command line that began this process, None within others."""
  programs = {
    'main.py': ['python', 'main.py'],
    '__main__.py': ['python', '-m', 'vit22b_jax'],
    'vit22b': ['vit22b'],
  }
  program = programs.get(pathlib.Path(arguments[0]).name)
  return program and shlex.join([*program, *arguments[1:]])
