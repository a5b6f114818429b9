"""Recipes against torchvision's and timm's definitions, on the same draws."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from configs import cifar100_vit22b_s, digits_vit22b_ti, folder
from vit22b_jax.data import augment, crops

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def random_images(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def recipe(**keys):
  return augment.recipe({'augment': 'none', 'image_size': 16} | keys)


# Words and keys.


def test_words_are_their_keys():
  given = {'augment': 'paper', 'image_size': 8}
  paper = augment.recipe(given)
  assert (paper.flip_horizontal, paper.flip_vertical) == (0.33, 0.33)
  assert (paper.crop_padding, paper.randaugment_layers) == (None, 0)
  mixed = augment.recipe(given | {'flip_vertical': 0.0, 'mixup': 0.2})
  assert (mixed.flip_horizontal, mixed.flip_vertical) == (0.33, 0.0)
  assert mixed.mixup and not paper.mixup and not paper.cutmix
  # None leaves a key to the word.
  assert augment.recipe(given | {'flip_horizontal': None}) == paper


# Random resized crop: torchvision.transforms.RandomResizedCrop.get_params.


def torchvision_box(draws, height, width, scale, ratio):
  """The first of ten boxes that fits, or the central one.

  Args:
    draws: ten of (area, log ratio, row, column), each in [0, 1).
  """
  for area_draw, ratio_draw, row, column in draws:
    area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
    log_ratio = [math.log(r) for r in ratio]
    # Ours draws height / width, which has the same distribution.
    inverse = -log_ratio[1] + ratio_draw * (log_ratio[1] - log_ratio[0])
    aspect = math.exp(-inverse)
    w = round(math.sqrt(area * aspect))
    h = round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = math.floor(row * (height - h + 1))
      return top, math.floor(column * (width - w + 1)), h, w
  in_ratio = width / height
  if in_ratio < min(ratio):
    w, h = width, round(width / min(ratio))
  elif in_ratio > max(ratio):
    w, h = round(height * max(ratio)), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
  ('shape', 'scale', 'ratio', 'least'),
  [
    ((31, 29), (0.08, 1.0), (3 / 4, 4 / 3), 20),
    ((29, 31), (0.9, 1.0), (1.0, 1.0), 4),
    ((37, 11), (0.95, 1.0), (3 / 4, 4 / 3), 1),  # None of ten fits.
    ((11, 37), (0.95, 1.0), (3 / 4, 4 / 3), 1),
  ],
)
def test_random_resized_crop_is_torchvision_s(shape, scale, ratio, least):
  image = random_images((*shape, 3))
  crop = jax.jit(crops.random_resized, static_argnums=(2, 3, 4))
  seen = set()
  for seed in range(20):
    key = jax.random.key(seed)
    draws = np.asarray(jax.random.uniform(key, (4, 10))).T
    top, left, h, w = torchvision_box(draws, *shape, scale, ratio)
    part = Image.fromarray(image[top : top + h, left : left + w])
    expected = np.asarray(part.resize((13, 17), Image.Resampling.BILINEAR))
    ours = np.asarray(crop(key, jnp.asarray(image), (17, 13), scale, ratio))
    # Pillow rounds between its two passes, in fixed point.
    assert np.abs(ours.astype(int) - expected).max() <= 1
    seen.add((top, left, h, w))
  assert len(seen) == least  # Different boxes.


def test_areas_and_proportions_are_spread_as_they_should():
  largest, size = (4000, 4000), (1000, 1000)  # so that every box fits
  boxes, fits = jax.vmap(
    lambda key: crops._draw_box(key, largest, (0.25, 1.0), (0.75, 4 / 3), size)
  )(jax.random.split(jax.random.key(0), 20_000))
  heights, widths = boxes[:, 2], boxes[:, 3]
  area = np.asarray(heights * widths).ravel() / 1e6
  ratio = np.log(np.asarray(heights / widths).ravel())
  np.testing.assert_allclose(area.mean(), (0.25 + 1) / 2, atol=0.005)
  np.testing.assert_allclose(
    np.quantile(area, [0.1, 0.9]), [0.325, 0.925], atol=0.01
  )
  np.testing.assert_allclose(ratio.mean(), 0, atol=0.005)
  np.testing.assert_allclose(
    [ratio.min(), ratio.max()], [-math.log(4 / 3), math.log(4 / 3)], atol=0.01
  )
  assert fits.all()


# Random erasing: torchvision.transforms.RandomErasing.get_params.


def torchvision_erased(image, draws, scale=(0.02, 0.33), ratio=(0.3, 3.3)):
  height, width, _ = image.shape
  for area_draw, ratio_draw, row, column in draws:
    area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + ratio_draw * (high - low))
    h = round(math.sqrt(area * aspect))
    w = round(math.sqrt(area / aspect))
    if not (h < height and w < width):
      continue
    top = math.floor(row * (height - h + 1))
    left = math.floor(column * (width - w + 1))
    out = image.copy()
    out[top : top + h, left : left + w] = 0
    return out
  return image


def test_random_erasing_is_torchvision_s():
  image = np.random.default_rng(0).normal(size=(13, 17, 3)).astype(np.float32)
  erase = jax.jit(crops.erase, static_argnums=2)
  for seed in range(20):
    key = jax.random.key(seed)
    draws = np.asarray(jax.random.uniform(jax.random.split(key)[1], (4, 10))).T
    expected = torchvision_erased(image, draws)
    np.testing.assert_array_equal(erase(key, image, 1.0), expected)
    assert not np.array_equal(expected, image)


def test_a_quarter_is_erased_with_probability_a_quarter():
  images = jnp.ones((4000, 8, 8, 3))
  keys = jax.random.split(jax.random.key(0), 4000)
  out = jax.vmap(lambda k, x: crops.erase(k, x, 0.25))(keys, images)
  share = np.asarray((out == 0).any(axis=(1, 2, 3))).mean()
  np.testing.assert_allclose(share, 0.25, atol=0.03)


# Mixup and CutMix: timm.data.Mixup with mode='batch'.


def timm_box(size, share, row, column):
  """timm.data.mixup.rand_bbox: top, bottom, left, right."""
  ratio = np.sqrt(1 - share)
  height, width = size
  cut_h, cut_w = int(height * ratio), int(width * ratio)
  return (
    np.clip(row - cut_h // 2, 0, height),
    np.clip(row + cut_h // 2, 0, height),
    np.clip(column - cut_w // 2, 0, width),
    np.clip(column + cut_w // 2, 0, width),
  )


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(7, 13, 17, 3)).astype(np.float32)
  return images, np.eye(5, dtype=np.float32)[rng.integers(0, 5, 7)]


@pytest.mark.parametrize('seed', range(5))
def test_mixup_is_timm_s(batch, seed):
  images, targets = batch
  key = jax.random.key(seed)
  share = np.asarray(jax.random.beta(jax.random.split(key, 4)[1], 0.8, 0.8))
  x, y = augment.mix(key, images, targets, mixup=0.8, cutmix=0.0, switch=0.5)
  expected = images * share + images[::-1] * (1 - share)
  np.testing.assert_allclose(x, expected, atol=1e-6)
  expected = targets * share + targets[::-1] * (1 - share)
  np.testing.assert_allclose(y, expected, atol=1e-6)
  np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize('seed', range(8))
def test_cutmix_is_timm_s(batch, seed):
  images, targets = batch
  key = jax.random.key(seed)
  _, _, cut, where = jax.random.split(key, 4)
  share = float(jax.random.beta(cut, 1.0, 1.0))
  row, column = jax.random.randint(where, (2,), 0, jnp.array((13, 17))).tolist()
  top, bottom, left, right = timm_box((13, 17), share, row, column)
  expected = images.copy()
  expected[:, top:bottom, left:right] = images[::-1, top:bottom, left:right]
  kept = 1 - (bottom - top) * (right - left) / (13 * 17)
  x, y = augment.mix(key, images, targets, mixup=0.0, cutmix=1.0, switch=0.5)
  np.testing.assert_array_equal(x, expected)
  expected = targets * kept + targets[::-1] * (1 - kept)
  np.testing.assert_allclose(y, expected, atol=1e-6)


def test_the_switch_chooses_between_both(batch):
  images, targets = batch
  mix = jax.jit(
    lambda key: augment.mix(
      key, images, targets, mixup=0.8, cutmix=1.0, switch=0.3
    )[0]
  )
  pasted = 0
  for seed in range(200):
    x = np.asarray(mix(jax.random.key(seed)))
    either = (x == images) | (x == images[::-1])
    pasted += bool(either.all())
  assert 40 <= pasted <= 82  # 60 expected, 3 deviations of 6.5.


# All of it in the step.

EVERYTHING = {
  'crop_scale': (0.3, 1.0),
  'flip_horizontal': 0.5,
  'flip_vertical': 0.1,
  'randaugment_layers': 1,
  'randaugment_magnitude': 5.0,
  'erase': 0.25,
  'mixup': 0.8,
  'cutmix': 1.0,
}


def train_images(images, labels, seed=0, **keys):
  run = jax.jit(
    lambda key, x, y: augment.train_images(
      key, x, y, recipe(**keys), mean=MEAN, std=STD, num_classes=5
    )
  )
  return run(jax.random.key(seed), images, labels)


@pytest.mark.slow
def test_a_batch_does_not_depend_on_the_devices():
  images, labels = random_images((16, 20, 20, 3)), np.arange(16) % 5
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  one = train_images(images, labels, **EVERYTHING)
  placed = jax.device_put((images, labels), sharding)
  eight = train_images(*placed, **EVERYTHING)
  for a, b in zip(one, eight, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert one[0].shape == (16, 16, 16, 3) and one[1].shape == (16, 5)
  other = train_images(images, labels, seed=1, **EVERYTHING)
  assert not np.allclose(one[0], other[0])


def test_without_a_mixture_labels_stay_numbers():
  images, labels = random_images((4, 16, 16, 3)), np.arange(4)
  x, y = train_images(images, labels)
  np.testing.assert_array_equal(y, labels)
  expected = (images / 255 - MEAN) / STD
  np.testing.assert_allclose(x, expected, atol=1e-5)


# Evaluation.


def test_the_center_is_evaluated():
  images = random_images((3, 20, 20, 3))
  cut = augment.eval_images(images, 16)
  np.testing.assert_array_equal(cut, images[:, 2:18, 2:18])
  np.testing.assert_array_equal(augment.eval_images(images, 20), images)


@pytest.mark.parametrize(('share', 'side'), [(0.8, 16), (0.3, 6), (1.0, 20)])
def test_a_share_of_the_center_is_resized_as_pillow_does(share, side):
  images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
  found = np.asarray(augment.eval_images(images, 11, share), int)
  start, end = 10 - side // 2, 10 + side // 2
  for image, cut in zip(images, found, strict=True):
    part = Image.fromarray(image).crop((start, start, end, end))
    expected = part.resize((11, 11), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(cut, np.asarray(expected, int), atol=1)


# The configs' words.


def test_strong_is_a_modern_recipe():
  config = cifar100_vit22b_s.get_config('strong')
  found = augment.recipe(config.data)
  assert (found.mixup, found.cutmix, found.erase) == (0.8, 1.0, 0.25)
  assert (found.crop_padding, found.flip_horizontal) == (-1, 0.5)
  assert found.randaugment_layers == 2
  assert config.loss.label_smoothing and config.model.stochastic_depth
  assert config.optim.schedule == 'cosine' and config.optim.ema
  assert augment.recipe(folder.get_config('strong').data).crop_scale
  # A mirrored digit is another thing.
  digits = augment.recipe(digits_vit22b_ti.get_config('strong').data)
  assert digits.flip_horizontal == 0 and digits.mixup


def test_cifar100_has_its_own_mean_but_in_the_paper_s_recipe():
  own = cifar100_vit22b_s.get_config().data
  paper = cifar100_vit22b_s.get_config('paper').data
  assert (own.mean, own.std) == (
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
  )
  assert (paper.mean, paper.std) == (
    (0.4914, 0.4822, 0.4465),
    (0.2023, 0.1994, 0.2010),
  )
