"""`digits`: 1,797 real 8x8 images that ship with scikit-learn (UCI ML).

https://archive.ics.uci.edu/dataset/80 (the test part of it, which scikit-learn
embeds). It has no split of its own: a stratified fifth, the same for every run,
is the test part here.
"""

import functools

import numpy as np
from jaxtyping import Int, Int32, UInt8

from vit22b_jax.data import records, splits

CLASS_NAMES = tuple(str(digit) for digit in range(10))
_TEST_FRACTION = 0.2


class DigitRecords(records.Records):
  """Some of the digits, as PPM files.

  Args:
    split: train or test.
    rows: which of the 1,797.
  """

  place = 'embedded://digits'

  def __init__(self, split: str, rows: Int[np.ndarray, ' N']):
    self._split = split
    self._rows = rows

  def __len__(self) -> int:
    return len(self._rows)

  def read(self, index: int) -> tuple[bytes, int]:
    """Returns a PPM file and its label."""
    images, labels = _load()
    row = self._rows[index]
    pixels = np.repeat(images[row], 3, axis=-1)
    return b'P6 8 8 255\n' + pixels.tobytes(), int(labels[row])

  def name(self, index: int) -> str:
    """Names the split and the number."""
    return f'digits {self._split}[{index}]'

  def labels(self) -> Int32[np.ndarray, ' N']:
    """Returns every label."""
    return _load()[1][self._rows]

  def identity(self) -> str:
    """Returns the one version that there is."""
    return f'digits-{self._split}-1'

  def listing(self) -> list[str]:
    """Returns the same."""
    return [self.identity()]


def find() -> dict[str, DigitRecords]:
  """Opens the train (1,438) and test (359) parts."""
  parts = splits.hold_out(_load()[1], _TEST_FRACTION, seed=0)
  return {
    split: DigitRecords(split, rows)
    for split, rows in zip(('train', 'test'), parts, strict=True)
  }


@functools.cache
def _load() -> tuple[UInt8[np.ndarray, 'N 8 8 1'], Int32[np.ndarray, ' N']]:
  from sklearn import datasets  # Imports scipy: half a second.

  pixels, labels = datasets.load_digits(return_X_y=True)
  # Values are 0 to 16.
  images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  return images, labels.astype(np.int32)
