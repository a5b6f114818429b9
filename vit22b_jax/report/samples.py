"""Grids of sample images: one column an image, one row a stage.

    samples.write(folder, 'samples/a2b', step, [real, translated, back])

Those of a translation have three rows: real images, their translations, and
the translations of these by the other generator. The page shows them small.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from vit22b_jax.data import decode
from vit22b_jax.runtime import runs, workdir

ROWS = 3
GAP = 2  # white pixels between images
_STEPS = 12  # grids on the page, at most
_SHOWN_TIMES = 4  # a difference from the real images, to be seen at all
_FILM_PIXELS = 768  # longest side of a grid of the film
_PIXELS = 1280  # longest side of a grid that stands alone
_FILM_SIZE = 4_000_000  # of all grids of the film, as data URLs
_QUALITIES = (92, 85, 75, 60, 45, 30)  # JPEG; the first that fits is taken

Pixels = UInt8[np.ndarray, 'h w 3']


class Picture(NamedTuple):
  """An image of the page: a data URL, and its size in pixels."""

  source: str
  width: int
  height: int


def grid(
  rows: Sequence[UInt8[np.ndarray, 'N H W 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """Returns images side by side, rows below each other, white gaps between."""
  gaps = ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0))
  images = np.pad(
    np.stack(list(map(np.asarray, rows))), gaps, constant_values=255
  )
  r, n, h, w, _ = images.shape
  joined = images.transpose(0, 2, 1, 3, 4).reshape(r * h, n * w, 3)
  return joined[:-GAP, :-GAP]


def png(image: UInt8[np.ndarray, 'H W 3']) -> bytes:
  """Returns the image as an RGB PNG file."""
  return _encode(Image.fromarray(np.asarray(image)), 'png')


def data_url(
  image: UInt8[np.ndarray, 'H W 3'], side: int, kind: str = 'png', **options
) -> str:
  """Returns the image in a data URL, at most `side` pixels a side."""
  return _picture(_shrunk(image, side), kind, **options).source


def write(
  folder: workdir.Workdir,
  name: str,
  step: int,
  rows: Sequence[UInt8[np.ndarray, 'N H W 3']],
) -> None:
  """Writes a `grid` of rows as NAME_STEP.png; trackers get it too."""
  picture = grid(rows)
  folder.write_bytes(f'{name}_{step:08d}.png', png(picture))
  folder.image(name, step, picture)


def chosen_steps(steps: Iterable[int]) -> list[int]:
  """Returns at most _STEPS of the steps, early ones denser, with both ends."""
  steps = sorted(steps)
  if len(steps) <= _STEPS:
    return steps
  places = np.linspace(0, np.sqrt(len(steps) - 1), _STEPS) ** 2
  return [steps[i] for i in sorted(set(places.round().astype(int)))]


def evaluated_step(run: runs.Run, steps: Iterable[int]) -> int:
  """Returns the step next to that of the evaluated weights, or the last."""
  wanted = run.evaluation.get('step', run.last_step)
  return min(steps, key=lambda step: (abs(step - wanted), step))


def read(path: epath.Path) -> Pixels | None:
  """Returns a grid; None when the file can't be read or isn't one."""
  try:
    image = decode.resized(path.read_bytes())
  except (OSError, decode.CorruptImage):
    return None
  whole = (len(image) - (ROWS - 1) * GAP) % ROWS == 0
  return image if whole else None


def is_wide(grid: Pixels) -> bool:
  """Returns whether two grids are better shown below than beside each other."""
  return grid.shape[1] > 2 * grid.shape[0]


def film(frames: Iterable[list[Pixels]]) -> list[list[Picture]]:
  """Returns frames of grids at the best quality that keeps the page small."""
  images = [[_shrunk(grid, _FILM_PIXELS) for grid in grids] for grids in frames]
  for quality in _QUALITIES:
    found = [[_jpeg(image, quality) for image in grids] for grids in images]
    if sum(len(one.source) for grids in found for one in grids) <= _FILM_SIZE:
      break
  return found


def reconstruction(grid: Pixels) -> Picture:
  """Returns a grid with a fourth row: reconstructions less real images."""
  off = np.minimum(_SHOWN_TIMES * _lost(grid), 255).astype(np.uint8)
  off[:, ~_columns(grid)] = 255
  white = np.full((GAP, *off.shape[1:]), 255, np.uint8)
  image = np.concatenate([grid, white, off])
  return _jpeg(_shrunk(image, _PIXELS), _QUALITIES[1])


def deviation(grid: Pixels) -> float:
  """Returns the mean absolute error of reconstructions, in [0, 1]."""
  lost = _lost(grid)[:, _columns(grid)]
  return float(lost.mean() / 255) if lost.size else 0.0


def _lost(grid: Pixels) -> Int[np.ndarray, 'h w 3']:
  """Returns the absolute difference of the first and the last row."""
  height = (len(grid) - (ROWS - 1) * GAP) // ROWS
  return np.abs(grid[:height].astype(np.int16) - grid[-height:])


def _columns(grid: Pixels) -> Bool[np.ndarray, 'w']:
  """Returns which columns show images, not the white between them."""
  return ~(grid == 255).all((0, 2))


def _shrunk(grid: Pixels, pixels: int) -> Image.Image:
  image = Image.fromarray(np.asarray(grid, np.uint8))
  image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
  return image


def _jpeg(image: Image.Image, quality: int) -> Picture:
  # Colors in full resolution: small images have no pixel to spare.
  return _picture(image, 'jpeg', quality=quality, subsampling=0)


def _picture(image: Image.Image, kind: str, **options) -> Picture:
  data = base64.b64encode(_encode(image, kind, **options)).decode()
  return Picture(f'data:image/{kind};base64,{data}', *image.size)


def _encode(image: Image.Image, kind: str, **options) -> bytes:
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()
