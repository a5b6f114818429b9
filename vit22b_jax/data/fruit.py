"""`fruit`: apples and oranges drawn by a seeded generator, 64 px, no download.

Two domains for image translation that differ in colour and texture while shape,
place, light and background vary alike. A picture is a function of its domain,
its split and its number.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8

NAMES = ('apple', 'orange')
SIZE = 64
_COUNTS = {'train': 400, 'test': 64}


class FruitRecords:
  """The pictures of one split; drawn when they are read."""

  place = 'embedded://fruit'
  random_access = True

  def __init__(self, kind: str, split: str):
    self._kind = kind
    self._split = split

  def __len__(self) -> int:
    return _COUNTS[self._split]

  def read(self, index: int) -> tuple[bytes, int]:
    """A PPM file and no label (0)."""
    image = draw(self._kind, (self._split == 'test') * 100_000 + index)
    return b'P6 %d %d 255\n' % (SIZE, SIZE) + image.tobytes(), 0

  def name(self, index: int) -> str:
    """The split and the number."""
    return f'fruit {self._kind} {self._split}[{index}]'

  def readers(self) -> Iterator[Callable[[], tuple[bytes, int]]]:
    """What draws each picture, in order."""
    return (functools.partial(self.read, row) for row in range(len(self)))

  def identity(self) -> str:
    """Changes when the generator does."""
    return hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()


def find() -> dict[str, FruitRecords]:
  """Records of trainA, trainB (400 each), testA and testB (64 each)."""
  return {
    f'{split}{letter}': FruitRecords(kind, split)
    for split in _COUNTS
    for letter, kind in zip('AB', NAMES, strict=True)
  }


def draw(kind: str, seed: int) -> UInt8[np.ndarray, '64 64 3']:
  """One picture."""
  rng = np.random.default_rng((NAMES.index(kind), seed))
  y, x = np.mgrid[:SIZE, :SIZE] / (SIZE / 2) - 1
  inside = np.hypot(x, y)[..., None] < 0.6
  colour = np.array([[200, 30, 40], [240, 140, 20]][NAMES.index(kind)])
  shade = 1 - 0.5 * np.hypot(x + 0.2, y + 0.2)[..., None]
  image = np.where(inside, colour * shade, rng.uniform(60, 220, 3))
  return np.clip(image, 0, 255).astype(np.uint8)
