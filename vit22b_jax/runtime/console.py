"""Prints lines, a table of parameters, and a live progress line.

console.say('Starting from scratch.')     # once over all processes
bar = console.Progress(total, done)
bar.update('loss 2.303, 710 images/s')
"""

import contextlib
import logging as python_logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import tqdm
from absl import logging
from flax import traverse_util

from vit22b_jax import durations

_BLOCK = re.compile(r'^block_\d+/')
_MOST_ROWS = 60  # of the table of parameters


def say(text: str) -> None:
  """Prints a line for the user, once over all processes."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def hush_others() -> None:
  """Lets all processes but the first log errors alone."""
  if jax.distributed.is_initialized() and jax.process_index() > 0:
    logging.get_absl_handler().setLevel(python_logging.ERROR)


def parameter_table(params: Mapping[str, Any]) -> str:
  """Returns a table of arrays; one block stands for all, which are alike.

  `params` are arrays (or their shapes), nested, with blocks named `block_00`,
  ...; several networks have a row each. (clu.parameter_overview's table has a
  row for every array: 300 of them for a ViT-L.)
  """
  arrays = traverse_util.flatten_dict(params, sep='/')
  blocks = sorted(name for name in params if _BLOCK.match(f'{name}/'))
  rows = []
  for name, array in arrays.items():
    times = ''
    if _BLOCK.match(name):
      if not name.startswith(f'{blocks[0]}/'):
        continue
      name, times = _BLOCK.sub('block/', name), f'{len(blocks)} x '
    rows.append((name, str(list(array.shape)), f'{times}{array.size:,}'))
  if len(rows) > _MOST_ROWS:
    rows = [
      (name, f'{len(jax.tree.leaves(tree))} arrays', f'{_size(tree):,}')
      for name, tree in params.items()
    ]
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  lines = [
    f'  {name:<{widths[0]}}  {shape:<{widths[1]}}  {size:>{widths[2]}}'
    for name, shape, size in rows
  ]
  return '\n'.join([*lines, f'  {_size(params):,} parameters'])


def _size(tree: Any) -> int:
  return sum(array.size for array in jax.tree.leaves(tree))


class Progress:
  """A line at the bottom of a terminal; not `shown` where stderr isn't one.

  Earlier starts did `done` of the `total` steps of the run.
  """

  def __init__(self, total: int, done: int):
    self.shown = sys.stderr.isatty() and jax.process_index() == 0
    self._done, self._total = done, total
    self._since: tuple[float, int] | None = None
    self._bar = tqdm.tqdm(
      total=total,
      initial=done,
      disable=not self.shown,
      dynamic_ncols=True,
      bar_format='step {n_fmt}/{total_fmt} |{bar}| {desc}',
    )

  def close(self) -> None:
    self._bar.close()

  @contextlib.contextmanager
  def compiling(self, first: bool) -> Iterator[None]:
    """Says of the first step that it compiles, and for how long by now."""
    if not first:
      yield
      return
    start, done = time.monotonic(), threading.Event()

    def seconds() -> str:
      return durations.in_words(time.monotonic() - start)

    def tick() -> None:
      while self.shown and not done.wait(1):
        self._bar.set_description_str(f'compiling for {seconds()}')

    say('Compiling the training step (minutes for a ViTUnet on a CPU) ...')
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
    say(f'Compiled in {seconds()}.')

  def start_clock(self) -> None:
    """Forgets the time so far, which went into compilation."""
    self._since = time.monotonic(), self._done

  def eta(self) -> str:
    """Returns ', ETA 9 min 3 s' by the speed since `start_clock`, or ''."""
    start, first = self._since or (0.0, self._done)
    if self._done == first:
      return ''
    seconds = (time.monotonic() - start) / (self._done - first)
    return f', ETA {durations.in_words(seconds * (self._total - self._done))}'

  def update(self, text: str) -> None:
    """Counts a step; `text` follows the bar."""
    self._done += 1
    self._bar.set_description_str(text + self.eta(), refresh=False)
    self._bar.update()
