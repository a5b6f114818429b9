"""A translation's grids of sample images, made small enough for the page.

A grid has three rows: real images, what a generator makes of them, and what
the other one makes of that. `samples` writes the files.
"""

import base64
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt8
from PIL import Image, UnidentifiedImageError

from vit22b_jax.report import workdir

ROWS = 3
GAP = 2  # white pixels between images, as `samples` has it
_STEPS = 12  # grids on the page, at most
_SHOWN_TIMES = 4  # a difference from the real images, to be seen at all
_FILM_PIXELS = 768  # longest side of a grid of the film
_PIXELS = 1280  # longest side of a grid that stands alone
_FILM_BYTES = 3_000_000  # of all grids of the film
_QUALITIES = (92, 85, 75, 60, 45, 30)  # JPEG; the first that fits is taken

Pixels = UInt8[np.ndarray, 'h w 3']


class Picture(NamedTuple):
  """An image of the page.

  Attributes:
    source: a data URL.
    width: in pixels, as embedded.
    height: likewise.
  """

  source: str
  width: int
  height: int


def chosen_steps(steps: Iterable[int]) -> list[int]:
  """At most _STEPS steps, first and last among them, the early ones denser."""
  steps = sorted(steps)
  places = np.linspace(0, np.sqrt(max(len(steps) - 1, 0)), _STEPS) ** 2
  if len(steps) <= _STEPS:
    return steps
  return [steps[i] for i in sorted(set(places.round().astype(int)))]


def evaluated_step(run: workdir.Run, steps: Iterable[int]) -> int:
  """The step next to that of the final evaluation's weights, or the last."""
  wanted = run.evaluation.get('step', run.last_step)
  return min(steps, key=lambda step: (abs(step - wanted), step))


def read(path: epath.Path) -> Pixels | None:
  """A grid; None when the file can't be read or isn't one."""
  try:
    pixels = np.asarray(
      Image.open(io.BytesIO(path.read_bytes())).convert('RGB')
    )
  except (OSError, UnidentifiedImageError):
    return None
  whole = (pixels.shape[0] - (ROWS - 1) * GAP) % ROWS == 0
  return pixels if whole else None


def is_wide(grid: Pixels) -> bool:
  """Whether two grids are better shown below than beside each other."""
  return grid.shape[1] > 2 * grid.shape[0]


def film(grids: list[Pixels]) -> list[Picture]:
  """Grids for the page, all at the best quality that keeps the page small."""
  images = [_shrunk(grid, _FILM_PIXELS) for grid in grids]
  for quality in _QUALITIES:
    encoded = [_jpeg(image, quality) for image in images]
    if sum(map(len, encoded)) <= _FILM_BYTES:
      break
  return [
    _picture(image, data) for image, data in zip(images, encoded, strict=True)
  ]


def reconstruction(grid: Pixels) -> Picture:
  """A grid with a fourth row: how far the way back is from the real images."""
  off = np.minimum(_SHOWN_TIMES * _lost(grid), 255).astype(np.uint8)
  off[:, ~_columns(grid)] = 255
  white = np.full((GAP, *off.shape[1:]), 255, np.uint8)
  image = _shrunk(np.concatenate([grid, white, off]), _PIXELS)
  return _picture(image, _jpeg(image, _QUALITIES[1]))


def deviation(grid: Pixels) -> float:
  """Mean absolute difference of real images and the way back, in [0, 1]."""
  lost = _lost(grid)[:, _columns(grid)]
  return float(lost.mean() / 255) if lost.size else 0.0


def _lost(grid: Pixels) -> Int[np.ndarray, 'h w 3']:
  """Absolute difference of the first and the last row."""
  height = (len(grid) - (ROWS - 1) * GAP) // ROWS
  return np.abs(grid[:height].astype(np.int16) - grid[-height:])


def _columns(grid: Pixels) -> Bool[np.ndarray, 'w']:
  """Which columns show images, not the white between them."""
  return ~(grid == 255).all((0, 2))


def _shrunk(grid: Pixels, pixels: int) -> Image.Image:
  image = Image.fromarray(grid)
  image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
  return image


def _jpeg(image: Image.Image, quality: int) -> bytes:
  stream = io.BytesIO()
  # Colours in full resolution: small images have no pixel to spare.
  image.save(stream, 'JPEG', quality=quality, subsampling=0)
  return stream.getvalue()


def _picture(image: Image.Image, data: bytes) -> Picture:
  source = f'data:image/jpeg;base64,{base64.b64encode(data).decode()}'
  return Picture(source, *image.size)
