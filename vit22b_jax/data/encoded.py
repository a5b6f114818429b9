"""Encoded images of one split: what every reader gives, and how it is read.

for size, label in encoded.apply(split, decode.size): ...
"""

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Float32, Int, Int32, UInt8

from vit22b_jax import errors
from vit22b_jax.data import decode, files

# Our name of a split -> names of folders and of TFDS's splits.
SPLIT_NAMES = {
  'train': ('train',),
  'val': ('validation', 'val', 'valid', 'dev'),
  'test': ('test',),
}

# The class of each image; or 0 or 1 for each, where it may be of several.
Labels = Int32[np.ndarray, ' N'] | Float32[np.ndarray, 'N K']
Label = Int32[np.ndarray, ''] | Float32[np.ndarray, ' K']
Read = Callable[[], tuple[bytes, Label]]

_SAMPLED = 512  # Files of a folder of which some content is hashed.
_Result = TypeVar('_Result')


class UnreadFile(decode.CorruptImage):
  """A file could not be read; the next time it may be."""


class Records:
  """Encoded images and their labels, in a fixed order; picklable.

  Attributes:
    place: where the images are: a folder or a URL.
    random_access: whether `read` works.
    multi_label: whether an image may be of several classes.
  """

  random_access = True
  multi_label = False

  def __init__(self, place: str, labels: Labels):
    self.place, self._labels = place, labels

  def __len__(self) -> int:
    return len(self._labels)

  def labels(self) -> Labels:
    """Returns every label (0 without labels); may have to read the records."""
    return self._labels

  def labeled(self) -> bool:
    """Returns whether the labels are known, judged by the first one."""
    return True

  def read(self, index: int) -> tuple[bytes, Label]:
    """Returns an image file's bytes and its label.

    Raises:
      CorruptImage: there is no such image; UnreadFile if only this time.
    """
    raise NotImplementedError

  def name(self, index: int) -> str:
    """Names a record in messages: a path, or a set and a number."""
    raise NotImplementedError

  def identity(self) -> Any:
    """Returns what changes when the images do, JSON-able: keys a cache."""
    raise NotImplementedError

  def listing(self) -> list[Any]:
    """Returns what stays when images are copied: an entry for each, or one."""
    raise NotImplementedError

  def readers(self) -> Iterator[Read]:
    """Yields what reads each record, in order; callable from any thread."""
    return (functools.partial(self.read, row) for row in range(len(self)))


class Files(Records):
  """Image files, by their paths below a data folder; labels are 0 if none."""

  def __init__(self, root: str, files: list[str], labels: Labels | None = None):
    if labels is None:
      labels = np.zeros(len(files), np.int32)
    super().__init__(root, labels)
    self.files, self.multi_label = files, labels.ndim > 1

  def read(self, index: int) -> tuple[bytes, Label]:
    try:
      data = epath.Path(self._path(index)).read_bytes()
    except OSError as error:
      raise UnreadFile(error.strerror or str(error)) from error
    return data, self._labels[index]

  def name(self, index: int) -> str:
    return errors.printable(self._path(index))

  def identity(self) -> list[Any]:
    """Returns name, label, size and times of every file, content of some."""
    paths = [self._path(row) for row in range(len(self))]
    step = -(-len(self) // _SAMPLED) or 1
    rows = zip(
      self.files, self._labels.tolist(), map(files.stat, paths), strict=True
    )
    return [list(rows), [files.sample(path) for path in paths[::step]]]

  def listing(self) -> list[Any]:
    """Returns name and size of every file; remote ones by name alone."""
    if files.is_remote(self.place):
      return self.files
    return [
      [file, *files.stat(self._path(row))[:1]]
      for row, file in enumerate(self.files)
    ]

  def _path(self, index: int) -> str:
    return os.path.join(self.place, self.files[index])


class Embedded(Records):
  """Images that the package itself draws; `version` changes with them."""

  def __init__(
    self,
    name: str,
    version: str,
    labels: Labels,
    draw: Callable[[int], UInt8[np.ndarray, 'H W 3']],
  ):
    super().__init__(f'embedded://{name}', labels)
    self._name, self._version, self._draw = name, version, draw

  def read(self, index: int) -> tuple[bytes, Label]:
    return decode.to_ppm(self._draw(index)), self._labels[index]

  def name(self, index: int) -> str:
    return f'{self._name}[{index}]'

  def identity(self) -> list[str]:
    return [self._name, self._version]

  def listing(self) -> list[Any]:
    return [[self._name, len(self)]]


class Halves(Files):
  """The left (0) or right (1) half of each image; an odd column is dropped."""

  def __init__(self, root: str, files: list[str], side: int):
    super().__init__(root, files)
    self._side = side

  def read(self, index: int) -> tuple[bytes, Label]:
    data, label = super().read(index)
    image = decode.resized(data)
    width = image.shape[1] // 2
    start = 0 if self._side == 0 else image.shape[1] - width
    return decode.to_ppm(image[:, start : start + width]), label

  def identity(self) -> list[Any]:
    return [self._side, super().identity()]


def apply(
  records: Records,
  function: Callable[[bytes], _Result],
  rows: Int[np.ndarray, ' n'] | None = None,
  *,
  chunk: int = 64,
) -> Iterator[tuple[_Result, Label] | tuple[decode.CorruptImage, None]]:
  """Yields `function` of each file and its label, or what is wrong and None.

  In order: of sorted `rows`, by default all. Threads read and decode, since
  Pillow releases the interpreter's lock, `chunk` images at a time: small ones
  are as quick to decode as to pass on.
  """

  def run(some: list[Read]):
    out = []
    for read in some:
      try:
        data, label = read()
        out.append((function(data), label))
      except decode.CorruptImage as error:
        out.append((error, None))
    return out

  threads = min(os.cpu_count() or 1, 32)
  readers, pending = records.readers(), collections.deque()
  if rows is not None:
    chosen = np.zeros(len(records), bool)
    chosen[rows] = True
    readers = itertools.compress(readers, chosen)
  with futures.ThreadPoolExecutor(threads) as pool:
    while some := list(itertools.islice(readers, chunk)):
      pending.append(pool.submit(run, some))
      if len(pending) > 2 * threads:
        yield from pending.popleft().result()
    while pending:
      yield from pending.popleft().result()
