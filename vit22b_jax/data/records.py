"""Encoded images of one split: what every reader gives, and how it is read.

    for size, label in records.apply(split, decode.size): ...

`readers/` has one subclass of `Records` for each kind of source.
"""

import collections
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, Int32, UInt8

from vit22b_jax.data import decode

# Our name of a split -> names of folders and of TFDS's splits.
SPLIT_NAMES = {
  'train': ('train',),
  'val': ('validation', 'val', 'valid', 'dev'),
  'test': ('test',),
}

_CHUNK = 64
_SAMPLE = 4096  # Bytes at the start, middle and end of a file.
_Result = TypeVar('_Result')


class Records:
  """Encoded images and their labels, in a fixed order; picklable.

  Attributes:
    place: where the images are: a folder or a URL.
    random_access: whether `read` works.
  """

  place: str
  random_access = True

  def __len__(self) -> int:
    raise NotImplementedError

  def read(self, index: int) -> tuple[bytes, int]:
    """Returns an image file's bytes (b'' if unreadable) and its label."""
    raise NotImplementedError

  def name(self, index: int) -> str:
    """Names a record in messages: a path, or a set and a number."""
    raise NotImplementedError

  def labels(self) -> Int32[np.ndarray, ' N']:
    """Returns every label (0 without labels); may have to read the records."""
    raise NotImplementedError

  def identity(self) -> Any:
    """Returns what changes when the images do, JSON-able: keys a cache."""
    raise NotImplementedError

  def listing(self) -> list[Any]:
    """Returns what stays when the images are copied: names and sizes.

    One entry for each record, or a single one for all.
    """
    raise NotImplementedError

  def readers(self) -> Iterator[Callable[[], tuple[bytes, int]]]:
    """Yields what reads each record, in order; callable from any thread."""
    return (functools.partial(self.read, row) for row in range(len(self)))


class Embedded(Records):
  """Images that the package itself knows or draws.

  Args:
    name: of the set and the split.
    version: changes with the images.
    labels: of every image.
    draw: returns an image by number, uint8 [H, W, 3]; picklable.
  """

  def __init__(
    self,
    name: str,
    version: str,
    labels: Int32[np.ndarray, ' N'],
    draw: Callable[[int], UInt8[np.ndarray, 'H W 3']],
  ):
    self.place = f'embedded://{name}'
    self._name, self._version = name, version
    self._labels, self._draw = labels, draw

  def __len__(self) -> int:
    return len(self._labels)

  def read(self, index: int) -> tuple[bytes, int]:
    image = self._draw(index)
    header = b'P6 %d %d 255\n' % (image.shape[1], image.shape[0])
    return header + image.tobytes(), int(self._labels[index])

  def name(self, index: int) -> str:
    return f'{self._name}[{index}]'

  def labels(self) -> Int32[np.ndarray, ' N']:
    return self._labels

  def identity(self) -> list[str]:
    return [self._name, self._version]

  def listing(self) -> list[Any]:
    return [[self._name, len(self)]]


def apply(
  records: Records,
  function: Callable[[bytes], _Result],
  rows: Int[np.ndarray, ' n'] | None = None,
) -> Iterator[tuple[_Result | decode.CorruptImage, int]]:
  """Yields `function` of each file (or what is wrong with it) and its label.

  In order. Threads read and decode, since Pillow releases the interpreter's
  lock; they take a chunk at a time, for small images are as quick to decode as
  to pass on.

  Args:
    records: encoded images.
    function: may raise CorruptImage.
    rows: which records, sorted; all by default.
  """

  def run(chunk: list[Callable[[], tuple[bytes, int]]]):
    out = []
    for read in chunk:
      data, label = read()
      try:
        out.append((function(data), label))
      except decode.CorruptImage as error:
        out.append((error, label))
    return out

  threads = min(os.cpu_count() or 1, 32)
  readers, pending = records.readers(), collections.deque()
  if rows is not None:
    chosen = np.zeros(len(records), bool)
    chosen[rows] = True
    readers = itertools.compress(readers, chosen)
  with futures.ThreadPoolExecutor(threads) as pool:
    while chunk := list(itertools.islice(readers, _CHUNK)):
      pending.append(pool.submit(run, chunk))
      if len(pending) > 2 * threads:
        yield from pending.popleft().result()
    while pending:
      yield from pending.popleft().result()


def digest(value: Any) -> str:
  """Hashes a JSON-able value to 12 hexadecimal digits.

  >>> digest({'a': 1, 'b': 2}) == digest({'b': 2, 'a': 1})
  True
  """
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def sample(path: str) -> str:
  """Hashes the start, middle and end of a local file; '' if unreadable."""
  found = hashlib.sha256()
  try:
    with open(path, 'rb') as file:
      size = os.fstat(file.fileno()).st_size
      for offset in (0, size // 2, max(size - _SAMPLE, 0)):
        file.seek(offset)
        found.update(file.read(_SAMPLE))
  except OSError:
    return ''
  return found.hexdigest()[:12]
