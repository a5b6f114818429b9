"""Sample images of a run as grids: one column an image, one row a stage.

samples.write(run, 'samples/a2b', step, [real, translated, back])
"""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit22b_jax.runtime import workdir as workdir_lib

GAP = 2  # white pixels between images


def grid(
  rows: Sequence[UInt8[np.ndarray, 'N H W 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """Images side by side, rows below each other, with white gaps between.

  Args:
    rows: equally many images in each, all of one size.
  """
  images = np.stack([np.asarray(row) for row in rows])
  images = np.pad(
    images,
    ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)),
    constant_values=255,
  )
  r, n, h, w, _ = images.shape
  joined = images.transpose(0, 2, 1, 3, 4).reshape(r * h, n * w, 3)
  return joined[:-GAP, :-GAP]


def png(image: UInt8[np.ndarray, 'H W 3']) -> bytes:
  """The image as an RGB PNG file."""
  out = io.BytesIO()
  Image.fromarray(np.asarray(image)).save(out, 'PNG')
  return out.getvalue()


def write(
  run: workdir_lib.Workdir,
  name: str,
  step: int,
  rows: Sequence[UInt8[np.ndarray, 'N H W 3']],
) -> None:
  """Writes NAME_STEP.png, the step with eight digits, and tells TensorBoard.

  Args:
    run: the run's folder.
    name: such as 'samples/a2b'.
    step: steps done.
    rows: see `grid`.
  """
  picture = grid(rows)
  run.write_bytes(f'{name}_{step:08d}.png', png(picture))
  run.image(name, step, picture)
