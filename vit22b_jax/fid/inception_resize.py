"""Resizes images to 299 x 299, in the three ways that FID is computed.

- `tf1`: TensorFlow 1's bilinear, as in the first FID code and torch-fidelity:
  the source of a pixel is dst * in/out, without half pixels.
- `torch`: bilinear about pixel centers without antialiasing, as pytorch-fid,
  whose Inception also looks at 2x/255 - 1 (`INPUT_SCALES`).
- `clean`: Pillow's antialiased bicubic on float channels, clipped to
  [0, 255], as clean-fid (https://arxiv.org/abs/2104.11222).

Each is linear and separable (before the clipping), so it is two products with
small matrices; images that have the size already stay as they are.

What two pixels give to the middle one of 299; without half pixels, all is
shifted:

    >>> print(matrix(2, 'torch')[149].round(2), matrix(2, 'tf1')[149].round(2))
    [0.5 0.5] [0. 1.]
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit22b_jax.models import inception

MODES = ('tf1', 'torch', 'clean')
# Inception takes (x - 128)/128 of what is resized and multiplied by this.
INPUT_SCALES = {'torch': 256 / 255}


def batch(
  images: Float[Array, 'B H W 3'], mode: str
) -> Float[Array, 'B 299 299 3']:
  """Resizes a batch of float32 in [0, 255] on its device."""
  down, across = (matrix(n, mode) for n in images.shape[1:3])
  x = jnp.einsum('pw,bhwc->bhpc', across, images, precision='highest')
  x = jnp.einsum('oh,bhpc->bopc', down, x, precision='highest')
  return x.clip(0, 255) if mode == 'clean' else x


def one(
  image: Float[np.ndarray, 'H W 3'], mode: str
) -> Float[np.ndarray, '299 299 3']:
  """Resizes an image in [0, 255] on the host, where each has its own size."""
  height, width, channels = image.shape
  down, across = matrix(height, mode), matrix(width, mode)
  x = down @ image.astype(np.float32).reshape(height, -1)
  x = np.matmul(across, x.reshape(-1, width, channels))
  return x.clip(0, 255) if mode == 'clean' else x


@functools.cache
def matrix(length: int, mode: str) -> Float[np.ndarray, '299 n']:
  """Returns weights of `length` source pixels in each of 299, float32."""
  scale = length / inception.SIZE
  target = np.arange(inception.SIZE, dtype=np.float64)
  source = target * scale if mode == 'tf1' else (target + 0.5) * scale - 0.5
  if mode == 'clean':  # Pillow's `precompute_coeffs`: stretched to shrink
    distance = (source[:, None] - np.arange(length)) / max(scale, 1.0)
    weights = _bicubic(np.abs(distance))
    weights /= weights.sum(axis=1, keepdims=True)
  else:
    source = source.clip(0, length - 1)
    weights = (1 - np.abs(source[:, None] - np.arange(length))).clip(0)
  return weights.astype(np.float32)


def _bicubic(x: Float[np.ndarray, '*S']) -> Float[np.ndarray, '*S']:
  """Computes Keys' kernel, https://doi.org/10.1109/TASSP.1981.1163711."""
  a = -0.5  # in Pillow; OpenCV and PyTorch have -0.75
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = ((x - 5) * x + 8) * x * a - 4 * a
  return np.where(x < 1, near, np.where(x < 2, far, 0))
