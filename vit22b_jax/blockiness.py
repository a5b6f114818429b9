"""How much of the patches that a generator is made of shows in its images.

    blockiness.ratio(images, patch=8)   # 1: nothing

The mean absolute difference of neighbouring pixels that a patch border
separates, over that of neighbours inside a patch. Natural images, of which the
borders know nothing, are at about 1; images pasted from patches above.
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
