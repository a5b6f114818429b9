"""Blockiness: by hand, of flat and of smooth images, mistakes."""

import json

import numpy as np
import pytest

from experiments.blockiness import blockiness, measure
from vit22b_jax import errors


def test_the_committed_table_is_that_of_the_committed_rows():
  rows = json.loads((measure.HERE / 'results.json').read_text())
  assert measure.table(rows) == (measure.HERE / 'results.md').read_text()


def test_by_hand():
  """Rows step by 1 inside and by 5 across; all columns are equal but one."""
  column = np.array([0, 1, 6, 7], np.uint8)
  image = np.tile(column[:, None, None], (1, 4, 3))
  image[0, 3] += 2  # a step inside to the right; below, 3 - 1 becomes 1
  # Inside, down: 2 borders x 4 columns of 1, of which one |1 - 2| = 1.
  # Inside, right: 2 borders x 4 rows of 0, of which one 2.
  # Across, down: 4 of 5. Across, right: 4 of 0.
  expected = ((4 * 5 + 0) / 8) / ((8 * 1 + 2) / 16)
  assert blockiness.ratio(image[None], 2) == pytest.approx(expected)


def test_the_unit_and_the_sign_of_pixels_do_not_matter():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 15, 10, 3)).astype(np.uint8)
  expected = blockiness.ratio(images, 5)
  floats = 1 - images.astype(np.float32) / 127.5
  assert blockiness.ratio(floats, 5) == pytest.approx(expected, rel=1e-5)


def test_random_images_have_no_patches_and_pasted_ones_do():
  rng = np.random.default_rng(1)
  noise = rng.uniform(size=(8, 48, 64, 3))
  assert blockiness.ratio(noise, 8) == pytest.approx(1, abs=0.05)
  pasted = rng.uniform(size=(8, 6, 8, 3)).repeat(8, 1).repeat(8, 2)
  pasted += 0.01 * noise
  assert blockiness.ratio(pasted, 8) > 20


def test_flat_images_have_no_ratio():
  assert np.isnan(blockiness.ratio(np.ones((1, 8, 8, 3)), 4))


def test_what_patches_have_in_common():
  rng = np.random.default_rng(2)
  means = rng.uniform(size=(5, 6, 4, 3)).repeat(7, 1).repeat(7, 2)
  texture = np.tile(rng.uniform(size=(5, 7, 7, 3)), (1, 6, 4, 1))
  noise = rng.uniform(size=means.shape)
  assert blockiness.common(means + texture, 7) == pytest.approx(1)
  assert blockiness.common(means + noise, 7) == pytest.approx(0, abs=0.02)
  # Of two sources of equal variance, one is shared.
  mixed = means + texture + noise
  assert blockiness.common(mixed, 7) == pytest.approx(0.5, abs=0.05)
  assert blockiness.common(1 - 2 * mixed, 7) == pytest.approx(
    blockiness.common(mixed, 7)
  )
  assert np.isnan(blockiness.common(np.ones((1, 6, 4, 3)), 2))


def test_common_by_hand():
  """Patches (0 2 / 0 2) and (1 1 / 5 5), of which means are taken out."""
  image = np.array([[0, 2, 1, 1], [0, 2, 5, 5]], np.float32)[None, ..., None]
  # (-1 1 / -1 1) and (-2 -2 / 2 2): mean square 2.5. Their mean, (-1.5 -0.5 /
  # 0.5 1.5), has 1.25, a share of 0.5, as of two patches without anything.
  assert blockiness.common(image, 2) == pytest.approx(0)


@pytest.mark.parametrize(('size', 'patch'), [((8, 12), 5), ((8, 8), 8)])
def test_images_that_are_not_patches_are_refused(size, patch):
  with pytest.raises(errors.UserError, match='are not two or more patches'):
    blockiness.common(np.ones((1, *size, 3)), patch)


@pytest.mark.parametrize(('size', 'patch'), [((8, 8), 1), ((8, 6), 8)])
def test_images_without_borders_are_refused(size, patch):
  with pytest.raises(errors.UserError, match=f'patches of {patch} x {patch}'):
    blockiness.ratio(np.ones((1, *size, 3)), patch)
