"""Grids of sample images, pixel by pixel."""

import io

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vit22b_jax.report import samples


class Folder:
  """Remembers what was written."""

  def __init__(self):
    self.files, self.images = {}, {}

  def write_bytes(self, name, content):
    self.files[name] = content

  def image(self, name, step, image):
    self.images[name, step] = image


def test_columns_are_images_and_rows_stages_with_white_gaps_between():
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 255, (3, 4, 5, 7, 3), np.uint8)  # never white
  got = samples.grid(rows)
  assert got.shape == (3 * 5 + 2 * 2, 4 * 7 + 3 * 2, 3)
  np.testing.assert_array_equal(got[7:12, 18:25], rows[1, 2])
  white = (got == 255).all(-1)
  assert white.sum() == got[..., 0].size - 3 * 4 * 5 * 7


def test_files_are_pngs_named_by_their_step_and_tensorboard_gets_them():
  run = Folder()
  rows = np.arange(2 * 1 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 1, 3, 3, 3)
  samples.write(run, 'samples/a2b', 500, rows)
  content = run.files['samples/a2b_00000500.png']
  np.testing.assert_array_equal(
    np.asarray(Image.open(io.BytesIO(content))), samples.grid(rows)
  )
  np.testing.assert_array_equal(
    run.images['samples/a2b', 500], samples.grid(rows)
  )


@pytest.mark.parametrize(
  'damage',
  [
    lambda png: b'',
    lambda png: png[: len(png) // 2],
    lambda png: png.replace(b'\0\0\0\rIHDR', b'\0\0\0\1IHDR'),
  ],
)
def test_a_damaged_grid_is_none(tmp_path, damage):
  grid = samples.grid(np.zeros((3, 2, 8, 8, 3), np.uint8))
  path = epath.Path(tmp_path) / 'a2b_00000001.png'
  path.write_bytes(samples.png(grid))
  np.testing.assert_array_equal(samples.read(path), grid)
  path.write_bytes(damage(samples.png(grid)))
  assert samples.read(path) is None
