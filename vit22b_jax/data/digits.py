"""`digits`: 1,797 real 8x8 images that ship with scikit-learn (UCI ML).

https://archive.ics.uci.edu/dataset/80 (the test part of it, which scikit-learn
embeds). It has no split of its own: a stratified fifth, the same for every run,
is the test part here.
"""

import numpy as np

from vit22b_jax.data import splits

_TEST_FRACTION = 0.2
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load(image_size: int) -> dict[str, splits.ArraySplit]:
  """Train (1,438) and test (359) parts, resized to `image_size` (bicubic)."""
  from sklearn import datasets  # Imports scipy: half a second.

  pixels, labels = datasets.load_digits(return_X_y=True)
  # Values are 0 to 16.
  images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  whole = splits.ArraySplit(
    np.repeat(images, 3, axis=-1), labels.astype(np.int32), image_size
  )
  whole = splits.ArraySplit(whole.images, whole.labels)
  train, test = splits.hold_out(whole.labels, _TEST_FRACTION, seed=0)
  return {'train': whole.subset(train), 'test': whole.subset(test)}
