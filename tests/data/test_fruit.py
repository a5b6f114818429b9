"""Tests of the drawn fruit: repeatable, varied, alike but for what they are."""

import colorsys

import numpy as np
import pytest

from vit22b_jax.data import loader
from vit22b_jax.data.readers import fruit


@pytest.fixture(scope='module')
def pictures():
  return {
    kind: np.stack([fruit.draw(kind, 'train', i) for i in range(40)])
    for kind in fruit.NAMES
  }


@pytest.mark.parametrize('kind', fruit.NAMES)
def test_a_picture_is_a_function_of_its_number(pictures, kind):
  again = fruit.draw(kind, 'train', 7)
  assert again.shape == (64, 64, 3)
  assert again.dtype == np.uint8
  np.testing.assert_array_equal(again, pictures[kind][7])
  assert not np.array_equal(again, fruit.draw(kind, 'test', 7))


def test_no_picture_comes_twice(pictures):
  every = np.concatenate(list(pictures.values()))
  assert len({picture.tobytes() for picture in every}) == len(every)


def _hue(kind, pictures):
  """Median hue, in degrees, of what is strongly colored and of warm hue."""
  pixels = pictures[kind].reshape(-1, 3)[::7] / 255
  hsv = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels])
  hue = (hsv[:, 0] * 360 + 180) % 360 - 180
  warm = (hsv[:, 1] > 0.7) & (hsv[:, 2] > 0.4) & (np.abs(hue - 20) < 50)
  return np.median(hue[warm]), warm.mean()


def test_apples_are_red_and_oranges_orange(pictures):
  apple, apple_share = _hue('apple', pictures)
  orange, orange_share = _hue('orange', pictures)
  assert -15 < apple < 10
  assert 20 < orange < 40
  # Of like size, so that a translator need not change shapes.
  assert 0.1 < apple_share < 0.5
  assert abs(apple_share - orange_share) < 0.1


def test_backgrounds_are_of_one_kind(pictures):
  corners = {
    kind: images[:, :8, :8].reshape(len(images), -1).mean(axis=1)
    for kind, images in pictures.items()
  }
  apple, orange = corners.values()
  spread = np.std(np.concatenate([apple, orange]))
  assert spread > 20
  assert abs(apple.mean() - orange.mean()) < 0.6 * spread


def test_oranges_are_rougher_than_apples(pictures):
  def roughness(images):
    center = images[:, 20:44, 20:44].astype(float).mean(axis=-1)
    bend = center[:, 1:-1] * 2 - center[:, 2:] - center[:, :-2]
    return np.median(np.abs(bend))

  assert roughness(pictures['orange']) > 1.3 * roughness(pictures['apple'])


def test_the_set(monkeypatch, tmp_path):
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path))
  monkeypatch.setattr(fruit, 'COUNTS', {'train': 30, 'test': 4})
  data = loader.load_domains('fruit', image_size=64, load_size=70)
  assert data.names == ('apple', 'orange')
  assert (len(data.train.a), len(data.val.a), len(data.test.a)) == (27, 3, 4)
  assert data.train.b[0]['image'].shape == (70, 70, 3)
  np.testing.assert_array_equal(
    data.test.b[2]['image'], fruit.draw('orange', 'test', 2)
  )
