"""Computes how much a generator's patches show in its images.

    >>> one = np.random.default_rng(0).uniform(size=(1, 8, 8, 3))
    >>> pasted = np.tile(one, (1, 4, 4, 1))  # the same patch, 16 times
    >>> round(common(pasted, patch=8), 3)
    1.0
    >>> ratio(np.array([0, 1, 3, 4]).reshape(1, 4, 1, 1), patch=2)  # 2 over 1
    2.0

Two ways in which patches show. `ratio` is the mean absolute difference of
neighboring pixels that a patch border separates, over that of neighbors
inside a patch: natural images are at about 1, images pasted from patches above.
A texture that recurs in every patch hides borders from it, and is what `common`
sees. Both are to be read beside their values for real images.
"""

import numpy as np
from jaxtyping import Num

from vit22b_jax import errors


def ratio(images: Num[np.ndarray, 'B H W C'], patch: int) -> float:
  """Blockiness of a set of images.

  Args:
    images: in any range, uint8 or float; the ratio doesn't depend on it.
    patch: side of a patch in pixels, from the upper left corner on.

  Returns:
    The ratio over all images, directions and channels; NaN for images without
    any difference inside a patch.

  Raises:
    UserError: when a patch has no inside or the images have no border.
  """
  height, width = images.shape[1:3]
  if patch < 2 or max(height, width) <= patch:
    raise errors.UserError(
      f'blockiness compares the borders of patches with what is inside: '
      f'{height} x {width} pixels have no patches of {patch} x {patch} with '
      'both.'
    )
  sums, counts = np.zeros(2), np.zeros(2)
  for axis in (1, 2):
    x = np.moveaxis(np.asarray(images, np.float64), axis, 0)
    steps = np.abs(np.diff(x, axis=0)).mean(axis=(1, 2, 3))
    border = np.arange(1, len(x)) % patch == 0
    weight = x[0].size
    sums += weight * np.array([steps[border].sum(), steps[~border].sum()])
    counts += weight * np.array([border.sum(), (~border).sum()])
  at_border, inside = sums / counts
  return float(at_border / inside) if inside > 0 else float('nan')


def common(images: Num[np.ndarray, 'B H W C'], patch: int) -> float:
  """Returns the part of the variance inside patches that patches share.

  Args:
    images: in any range, uint8 or float; the share doesn't depend on it.
    patch: side of a patch in pixels, which divides the images.

  Returns:
    1 when the patches of an image differ in their mean alone; about 0 when they
    have nothing in common (an unbiased estimate, so also below); NaN for
    patches without any variance.

  Raises:
    UserError: when images aren't two or more whole patches with an inside.
  """
  b, height, width, c = images.shape
  count = (height // patch) * (width // patch)
  if patch < 2 or height % patch or width % patch or count < 2:
    raise errors.UserError(
      f'blockiness compares patches: {height} x {width} pixels are not two or '
      f'more patches of {patch} x {patch}.'
    )
  x = np.asarray(images, np.float64)
  x = x.reshape(b, height // patch, patch, width // patch, patch, c)
  x = x - x.mean(axis=(2, 4), keepdims=True)
  variance = np.square(x).mean()
  if not variance > 0:
    return float('nan')
  share = np.square(x.mean(axis=(1, 3))).mean() / variance
  return float((count * share - 1) / (count - 1))
