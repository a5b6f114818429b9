"""Frechet and kernel distances: reference values, few samples, bad input."""

import numpy as np
import pytest

from tests.helpers import golden_params
from vit22b_jax import errors
from vit22b_jax.fid import distances, statistics

GOLDEN, _ = golden_params.load('inception_fid')


def of(x, *, keep_features=True):
  """As `Statistics.of`, of float64 features; or their moments alone."""
  x = np.asarray(x)
  mean = x.sum(axis=0) / max(len(x), 1)
  covariance = (x - mean).T @ (x - mean) / max(len(x) - 1, 1)
  return statistics.Statistics(
    mean, covariance, len(x), x if keep_features else None
  )


@pytest.fixture
def warnings(monkeypatch):
  found = []
  distances._warn_of_few.cache_clear()
  monkeypatch.setattr(
    distances.logging, 'warning', lambda text, *args: found.append(text % args)
  )
  return found


@pytest.mark.parametrize('keep_features', [True, False])
def test_golden_frechet(keep_features, warnings):
  x, y, few = (
    of(GOLDEN[f'fid_{name}'], keep_features=keep_features) for name in 'xys'
  )
  assert distances.frechet(x, y) == pytest.approx(GOLDEN['fid_xy'], rel=1e-6)
  assert distances.frechet(y, x) == pytest.approx(GOLDEN['fid_xy'], rel=1e-6)
  assert distances.frechet(x, x) == 0
  assert not warnings
  assert distances.frechet(few, x) == pytest.approx(GOLDEN['fid_sx'], rel=1e-6)
  assert '10 images for 16 features' in warnings[0]
  distances.frechet(few, x)
  assert len(warnings) == 1  # said once


@pytest.mark.parametrize('keep_features', [True, False])
@pytest.mark.parametrize('width', [1, 16, 300])
@pytest.mark.parametrize('count', [2, 40, 1000])
@pytest.mark.parametrize('scale', [1e-3, 1, 1e3])
def test_equal_sets_are_0_apart(count, width, scale, keep_features, warnings):
  """Even where images are few, so that covariances are singular."""
  x = np.random.default_rng(count).gamma(0.5, scale, (count, width))
  x[:, 0] = scale  # a feature that never changes
  a = of(x, keep_features=keep_features)
  # In another order, so that sums are rounded otherwise.
  b = of(x[::-1].copy(), keep_features=keep_features)
  assert distances.frechet(a, b) == 0
  # What is truly there stays.
  near = of(x * (1 + 1e-4), keep_features=keep_features)
  mean = np.square(a.mean * 1e-4).sum()
  expected = mean + np.trace(a.covariance) * 1e-8
  assert distances.frechet(a, near) == pytest.approx(expected, rel=1e-2)


def test_frechet_by_hand():
  # In one dimension (m1 - m2)^2 + (s1 - s2)^2.
  a, b = of([[1.0], [3.0]]), of([[10.0], [16.0]])
  expected = (13 - 2) ** 2 + (np.sqrt(18) - np.sqrt(2)) ** 2
  assert distances.frechet(a, b) == pytest.approx(expected)


def test_two_images_in_many_dimensions_are_finite(warnings):
  rng = np.random.default_rng(0)
  a, b = (of(rng.standard_normal((2, 300))) for _ in range(2))
  moments = [of(s.features, keep_features=False) for s in (a, b)]
  value = distances.frechet(a, b)
  assert np.isfinite(value)
  assert distances.frechet(*moments) == pytest.approx(value, rel=1e-6)
  assert warnings


def test_golden_kernel():
  value, error = distances.kernel(GOLDEN['fid_x'], GOLDEN['fid_y'])
  assert value == pytest.approx(GOLDEN['kid_xy'], rel=1e-9)
  assert 0 < error < value


def test_kernel_by_hand():
  x, y = np.array([[1.0], [2.0], [0.0]]), np.array([[0.0], [3.0]])
  within_x = ((2 + 1) ** 3 + (0 + 1) ** 3 + (0 + 1) ** 3) * 2 / 6
  within_y = (0 + 1) ** 3
  between = np.mean([1, 4**3, 1, 7**3, 1, 1])
  value, error = distances.kernel(x, y)
  assert value == pytest.approx(within_x + within_y - 2 * between)
  assert error is None  # two images have no jackknife


@pytest.mark.parametrize('subset_size', [1000, 40])
def test_kernel_error_is_that_of_other_samples(subset_size):
  rng = np.random.default_rng(0)
  found = [
    distances.kernel(
      rng.standard_normal((160, 8)),
      rng.standard_normal((120, 8)) + 0.5,
      subsets=60,
      subset_size=subset_size,
    )
    for _ in range(60)
  ]
  values, errors_ = np.array(found).T
  assert 0.6 < np.median(errors_) / values.std() < 1.6


def test_kernel_is_unbiased():
  rng = np.random.default_rng(1)
  values = [
    distances.kernel(rng.standard_normal((12, 3)), rng.standard_normal((9, 3)))[
      0
    ]
    for _ in range(400)
  ]
  assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(400)


def test_subsets_are_the_same_every_time():
  x, y = GOLDEN['fid_x'], GOLDEN['fid_y']
  first = distances.kernel(x, y, subsets=5, subset_size=50)
  assert first == distances.kernel(x, y, subsets=5, subset_size=50)
  assert first[0] == pytest.approx(GOLDEN['kid_xy'], abs=4 * first[1])


def test_jackknife_leaves_each_image_out_once():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
  without_x = [distances.kernel(np.delete(x, i, 0), y)[0] for i in range(5)]
  without_y = [distances.kernel(x, np.delete(y, i, 0))[0] for i in range(4)]
  expected = np.sqrt(4 * np.var(without_x) + 3 * np.var(without_y))
  assert distances.kernel(x, y)[1] == pytest.approx(expected)


def test_all_or_as_many_of_both():
  rng = np.random.default_rng(0)
  a, b = (
    statistics.Statistics.of(rng.standard_normal((n, 3))) for n in (30, 20)
  )
  found = distances.measure(a, b)
  assert list(found) == ['fid', 'kid', 'kid_stderr', 'num_a', 'num_b']
  assert (found['num_a'], found['num_b']) == (30, 20)
  least = distances.measure(a, b, num='min')
  first = statistics.Statistics.of(a.features[:20])
  assert (least['num_a'], least['num_b']) == (20, 20)
  assert least['fid'] == distances.measure(first, b)['fid'] != found['fid']
  moments = statistics.Statistics(b.mean, b.covariance, None)
  one_sided = distances.measure(a, moments)
  assert one_sided['fid'] == pytest.approx(found['fid'])
  assert one_sided['kid'] is one_sided['num_b'] is None
  with pytest.raises(errors.UserError, match="so use 'all'"):
    distances.measure(a, moments, num='min')


def test_sets_that_can_not_be_compared():
  two = of(np.zeros((2, 3)))
  with pytest.raises(errors.UserError, match='set b has 1 image'):
    distances.measure(two, of(np.zeros((1, 3))))
  with pytest.raises(errors.UserError, match='set a has 0 image'):
    distances.measure(of(np.zeros((0, 3))), two)
  with pytest.raises(errors.UserError, match='3 features and set b 4'):
    distances.measure(two, of(np.zeros((2, 4))))


def test_extrapolation_takes_the_bias_away():
  rng = np.random.default_rng(0)
  shift = np.zeros(40)
  shift[0] = 2.0  # so the true distance is 4
  a, b = (of(rng.standard_normal((1000, 40)) + s) for s in (0, shift))
  value, sweep = distances.extrapolate(a, b)
  assert sweep[0][:2] == (250, 250)
  assert sweep[-1] == (1000, 1000, pytest.approx(distances.frechet(a, b)))
  assert sweep[0][2] > sweep[-1][2] > 4.3
  assert abs(value - 4) < 0.5 * abs(sweep[-1][2] - 4)


def test_extrapolation_of_equal_sets_is_not_negative():
  x = of(np.random.default_rng(0).standard_normal((40, 8)))
  assert distances.extrapolate(x, x)[0] >= 0


def test_extrapolation_needs_images():
  rng = np.random.default_rng(0)
  enough, few = (of(rng.standard_normal((n, 3))) for n in (16, 15))
  distances.extrapolate(enough, enough)
  with pytest.raises(
    errors.UserError, match=r'16 images at least.*set b has 15'
  ):
    distances.extrapolate(enough, few)
  moments = statistics.Statistics(few.mean, few.covariance, None)
  with pytest.raises(errors.UserError, match='set a has moments'):
    distances.extrapolate(moments, few)
