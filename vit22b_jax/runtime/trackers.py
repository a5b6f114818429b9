"""Sends a run's scalars and images to TensorBoard and to Weights & Biases.

trackers = trackers.Trackers(path, tensorboard=True, wandb='project')
trackers.scalars(10, {'train/loss': 1.2})
trackers.close()

Both are conveniences: one that fails says so in a warning and ends nothing.
"""

import functools
import io
import os
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageDraw

Calls = dict[str, Callable[..., None]]
_SHOWN = 32  # sample images of a classifier
_SIDE = 96  # pixels of each
_WANDB_ID = 'wandb_id.txt'  # whose run a workdir is


class Trackers:
  """Calls in a thread of their own, since the libraries load for seconds.

  Args:
    path: the workdir.
    tensorboard: whether event files are written there, by clu.
    wandb: a project of Weights & Biases, where a workdir is a run; '' for none.

  Attributes:
    done: the step that this start begins after; set it before the first call.
    choices: the run's flattened config; likewise.
  """

  def __init__(
    self, path: epath.PathLike, *, tensorboard: bool = False, wandb: str = ''
  ):
    self.done = 0
    self.choices: dict[str, Any] = {}
    self._path = path
    self._open: dict[str, Callable[[], Calls]] = {}
    if tensorboard:
      self._open['TensorBoard'] = functools.cache(self._open_tensorboard)
    if wandb:
      self._open['Weights & Biases'] = functools.cache(
        lambda: self._open_wandb(wandb)
      )
    self._pool = futures.ThreadPoolExecutor(1)
    self._last: futures.Future | None = None

  def scalars(self, step: int, row: dict[str, float]) -> None:
    self._put('scalars', step, row)

  def image(
    self, name: str, step: int, image: UInt8[np.ndarray, 'H W 3']
  ) -> None:
    self._put('image', name, step, image)

  def predictions(self, name: str, step: int, path: epath.Path) -> None:
    """Shows images of a predictions.npz, and what they were taken for.

    Images of several classes each have no short word, and aren't shown.
    """
    if self._open and path.exists():
      found = np.load(io.BytesIO(path.read_bytes()))
      if 'labels' in found:
        self.image(name, step, _picture(found))

  def close(self) -> None:
    """Waits until everything is written."""
    if self._last is not None:
      self._pool.submit(self._call, 'close').result()

  def _put(self, *call: Any) -> None:
    if self._open:
      self._last = self._pool.submit(self._call, *call)

  def _call(self, kind: str, *arguments: Any) -> None:
    for name, opened in list(self._open.items()):
      try:
        opened()[kind](*arguments)
      except Exception as error:  # A convenience: a run mustn't end for it.
        reason = str(error).split('\n')[0]
        if getattr(error, 'name', None) == 'tensorflow':
          reason += ': pip install tensorflow, or log.tensorboard=False'
        logging.warning('Nothing more is written to %s: %s', name, reason)
        del self._open[name]

  def _open_tensorboard(self) -> Calls:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # and its notice
    from clu import metric_writers

    self._open_session()  # in a file that is read before the next
    writer = metric_writers.SummaryWriter(os.fspath(self._path))
    kinds = (bool, int, float, str)
    writer.write_hparams(
      {k: v for k, v in self.choices.items() if isinstance(v, kinds)}
    )

    def flushed(write, *arguments):
      write(*arguments)
      writer.flush()

    return {
      'scalars': functools.partial(flushed, writer.write_scalars),
      'image': lambda name, step, image: flushed(
        writer.write_images, step, {name: image[None]}
      ),
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

  def _open_wandb(self, project: str) -> Calls:
    import wandb

    folder = epath.Path(self._path)
    if not (file := folder / _WANDB_ID).exists():
      file.write_text(secrets.token_hex(8))
    run = wandb.init(
      project=project,
      name=os.path.basename(os.path.abspath(folder)),
      id=file.read_text(),
      resume='allow',
      config=self.choices,
    )
    # Its own step only grows, and earlier rows would be dropped: those of the
    # best checkpoint's evaluation, and what a resumed run does again.
    run.define_metric('step')
    run.define_metric('*', step_metric='step')
    return {
      'scalars': lambda step, row: run.log({'step': step, **row}),
      'image': lambda name, step, image: run.log(
        {'step': step, name: wandb.Image(image)}
      ),
      'close': run.finish,
    }


def _picture(found: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, 'H W 3']:
  """Draws images of a predictions.npz, eight a row, above what they are.

  A right class is green; a wrong one is red, with the true one in brackets.
  """
  rows, names = found['image_rows'], found['class_names']
  labels, probabilities = found['labels'], found['probabilities']
  chosen = np.random.default_rng(0).permutation(len(rows))[:_SHOWN]
  line = _SIDE + 16
  height = -(-len(chosen) // 8) * line
  picture = Image.new('RGB', (8 * _SIDE, height), 'white')
  draw = ImageDraw.Draw(picture)
  for place, i in enumerate(chosen):
    x, y = place % 8 * _SIDE, place // 8 * line
    image = Image.fromarray(found['images'][i])
    image = image.resize((_SIDE - 4,) * 2, Image.Resampling.BICUBIC)
    picture.paste(image, (x, y))
    label, taken = labels[rows[i]], probabilities[rows[i]].argmax()
    text = f'{names[taken]}' + f' ({names[label]})' * bool(taken != label)
    color = 'darkgreen' if taken == label else 'crimson'
    draw.text((x + 2, y + _SIDE - 3), text[:16], color)
  return np.asarray(picture)
