"""Sends a run's scalars and images to TensorBoard and to Weights & Biases.

tracker = trackers.TensorBoard(path)
tracker.scalars(10, {'train/loss': 1.2})
tracker.close()

Both are conveniences: one that fails says so in a warning and ends nothing.
"""

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8


class Tracker:
  """Calls that a thread of its own makes, since the libraries load for seconds.

  Subclasses give `_open()`, which returns a function for each kind of call.

  Attributes:
    done: the step that this start begins after; set it before the first call.
    choices: the run's flattened config; likewise.
  """

  name: str

  def __init__(self, path: epath.Path):
    self._path = path
    self.done = 0
    self.choices: dict[str, Any] = {}
    self._calls: queue.Queue = queue.Queue()
    self._thread: threading.Thread | None = None

  def scalars(self, step: int, row: dict[str, float]) -> None:
    self._put('scalars', step, row)

  def image(
    self, name: str, step: int, image: UInt8[np.ndarray, 'H W 3']
  ) -> None:
    self._put('image', name, step, image)

  def close(self) -> None:
    """Waits until everything is written."""
    if self._thread is not None:
      self._calls.put(None)
      self._thread.join()

  def _put(self, kind: str, *arguments: Any) -> None:
    if self._thread is None:
      self._thread = threading.Thread(target=self._work, daemon=True)
      self._thread.start()
    self._calls.put((kind, arguments))

  def _open(self) -> dict[str, Callable[..., None]]:
    raise NotImplementedError

  def _work(self) -> None:
    item: Any = ()
    try:
      calls = self._open()
      while (item := self._calls.get()) is not None:
        kind, arguments = item
        calls[kind](*arguments)
        if self._calls.empty():
          calls['flush']()
      calls['close']()
    except Exception as error:  # A convenience: a run mustn't end for it.
      reason = str(error).split('\n')[0]
      if getattr(error, 'name', None) == 'tensorflow':
        reason += ': pip install tensorflow, or log.tensorboard=False'
      logging.warning('Nothing more is written to %s: %s', self.name, reason)
      while item is not None:
        item = self._calls.get()


class TensorBoard(Tracker):
  """Event files in the workdir, written by clu."""

  name = 'TensorBoard'

  def _open(self) -> dict[str, Callable[..., None]]:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # and its notice
    from clu import metric_writers

    self._open_session()  # in a file that is read before the next
    writer = metric_writers.SummaryWriter(os.fspath(self._path))
    kinds = (bool, int, float, str)
    known = {k: v for k, v in self.choices.items() if isinstance(v, kinds)}
    writer.write_hparams(known)
    return {
      'scalars': writer.write_scalars,
      'image': lambda name, step, image: writer.write_images(
        step, {name: image[None]}
      ),
      'flush': writer.flush,
      'close': writer.close,
    }

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


class WandB(Tracker):
  """A run of a Weights & Biases project; one workdir is one run there.

  Args:
    path: the workdir.
    project: its name there.
  """

  name = 'Weights & Biases'

  def __init__(self, path: epath.Path, project: str):
    super().__init__(path)
    self._project = project

  def _open(self) -> dict[str, Callable[..., None]]:
    import wandb

    run = wandb.init(
      project=self._project,
      name=self._path.name,
      id=hashlib.sha256(os.path.abspath(self._path).encode()).hexdigest()[:16],
      resume='allow',
      config=self.choices,
    )
    return {
      'scalars': lambda step, row: run.log(row, step=step),
      'image': lambda name, step, image: run.log(
        {name: wandb.Image(image)}, step=step
      ),
      'flush': lambda: None,
      'close': run.finish,
    }
