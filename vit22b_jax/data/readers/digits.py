"""`digits`: 1,797 real 8x8 images that ship with scikit-learn (UCI ML).

https://archive.ics.uci.edu/dataset/80 (the test part of it, which scikit-learn
embeds). It has no split of its own: a stratified fifth, the same for every run,
is the test part here.
"""

import functools

import numpy as np
from jaxtyping import Int, Int32, UInt8

from vit22b_jax.data import encoded, splits

CLASS_NAMES = tuple(str(digit) for digit in range(10))


def find() -> dict[str, encoded.Embedded]:
  """Opens the train (1,438) and test (359) parts."""
  labels = _load()[1]
  parts = splits.hold_out(labels, 0.2, seed=0)
  return {
    split: encoded.Embedded(
      f'digits {split}', '1', labels[rows], functools.partial(_digit, rows)
    )
    for split, rows in zip(('train', 'test'), parts, strict=True)
  }


def _digit(
  rows: Int[np.ndarray, ' N'], index: int
) -> UInt8[np.ndarray, '8 8 3']:
  return np.repeat(_load()[0][rows[index]], 3, axis=-1)


@functools.cache
def _load() -> tuple[UInt8[np.ndarray, 'N 8 8 1'], Int32[np.ndarray, ' N']]:
  from sklearn import datasets  # Imports scipy: half a second.

  pixels, labels = datasets.load_digits(return_X_y=True)
  # Values are 0 to 16.
  images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  return images, labels.astype(np.int32)
