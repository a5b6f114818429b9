"""Images -> features: resizing, quantizing, batches, devices, sums."""

import functools
import hashlib
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from tests.helpers import golden_params
from vit22b_jax import errors
from vit22b_jax.fid import (
  extractor,
  inception_resize,
  inception_weights,
  statistics,
)
from vit22b_jax.models import inception

RNG = np.random.default_rng(0)


# --- Resizing ----------------------------------------------------------------


@pytest.mark.parametrize('mode', inception_resize.MODES)
@pytest.mark.parametrize('name', 'abcd')
def test_golden_resizes(mode, name):
  arrays, _ = golden_params.load('inception_fid')
  image = arrays[f'image_{name}'][:1].astype(np.float32)
  expected = arrays[f'resize_{mode}_{name}'][0]
  on_device = np.asarray(inception_resize.batch(image, mode))[0]
  for ours in (on_device, inception_resize.one(image[0], mode)):
    assert ours.shape == (299, 299, 3)
    assert ours.dtype == np.float32
    assert np.abs(ours[::13, ::13] - expected).max() < 1e-3 * 255


@pytest.mark.parametrize('hw', [(31, 47), (397, 601), (1, 2), (299, 300)])
def test_clean_is_what_pillow_does_to_float_channels(hw):
  image = RNG.integers(0, 256, (*hw, 3), np.uint8)
  image[: hw[0] // 2] = 255  # edges, where bicubic overshoots
  channels = [
    np.asarray(
      Image.fromarray(image[..., c].astype(np.float32), 'F').resize(
        (299, 299), Image.Resampling.BICUBIC
      )
    )
    for c in range(3)
  ]
  expected = np.stack(channels, axis=-1).clip(0, 255)
  assert np.abs(inception_resize.one(image, 'clean') - expected).max() < 1e-3


@pytest.mark.parametrize('mode', inception_resize.MODES)
def test_the_right_size_stays_as_it_is(mode):
  np.testing.assert_array_equal(inception_resize.matrix(299, mode), np.eye(299))


def test_modes_by_hand():
  # From 2 pixels: tf1 looks at dst * 2/299, torch at (dst + 1/2) * 2/299 - 1/2.
  tf1, torch = (
    inception_resize.matrix(2, 'tf1'),
    inception_resize.matrix(2, 'torch'),
  )
  np.testing.assert_allclose(tf1[100], [1 - 200 / 299, 200 / 299], rtol=1e-6)
  assert tf1[200].tolist() == [0, 1]  # the source would be past the last
  assert torch[20].tolist() == [1, 0]
  right = 100.5 * 2 / 299 - 0.5
  np.testing.assert_allclose(torch[100], [1 - right, right], rtol=1e-5)


def test_torch_mode_is_pytorch_fid_by_definition():
  """Bilinear about pixel centers of x/255, then 2x - 1, then Inception."""
  image = RNG.integers(0, 256, (40, 61, 3), np.uint8)
  rows, columns = (
    np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1) for n in (40, 61)
  )
  expected = np.zeros((299, 299, 3))
  x = image.astype(np.float64) / 255
  for i, y in enumerate(rows):
    top, below = int(y), min(int(y) + 1, 39)
    row = x[top] * (1 - (y - top)) + x[below] * (y - top)
    left = columns.astype(int)
    right = np.minimum(left + 1, 60)
    part = (columns - left)[:, None]
    expected[i] = row[left] * (1 - part) + row[right] * part
  expected = 2 * expected - 1
  model = inception.Inception(('64',))
  params, _ = inception_weights.load('random:1', ('64',))
  inputs = 128 * (1 + expected.astype(np.float32))  # (x - 128)/128 of which
  features = model.apply({'params': params}, inputs[None])['64']
  settings = extractor.Settings('random:1', tap=64, resize='torch')
  found = extractor.Extractor(settings, 1)
  for images in (image[None], [image, image[:9]]):  # on the device, on the host
    ours = next(found.features({'image': images}))
    np.testing.assert_allclose(ours, features, rtol=2e-5, atol=1e-5)
  # It would show: other ranges give other features.
  other = model.apply({'params': params}, inputs[None] * (255 / 256))['64']
  assert np.abs(other - features).max() > 1e-3


@pytest.mark.parametrize(
  'quantize, expected',
  [
    ('round', [0, 2, 2, 3, 255]),
    ('truncate', [0, 1, 2, 2, 255]),
    ('none', [-0.6, 1.6, 2.4, 2.6, 255.4]),
  ],
)
def test_quantizing(quantize, expected):
  values = np.array([-0.6, 1.6, 2.4, 2.6, 255.4], np.float32)
  images = np.broadcast_to(values[:, None, None, None], (5, 299, 299, 3))
  settings = extractor.Settings(quantize=quantize, resize='tf1')
  found = extractor.prepare(jnp.asarray(images), settings)
  np.testing.assert_allclose(found[:, 7, 5, 1], expected, rtol=1e-6)


def test_uint8_images_need_no_quantizing():
  images = RNG.integers(0, 256, (1, 299, 299, 3), np.uint8)
  for quantize in ('round', 'truncate', 'none'):
    settings = extractor.Settings(quantize=quantize, resize='torch')
    found = extractor.prepare(jnp.asarray(images), settings)
    np.testing.assert_array_equal(found, images)


# --- Batches -----------------------------------------------------------------

IMAGES = RNG.integers(0, 256, (7, 32, 40, 3), np.uint8)


@functools.cache
def one_device():
  return extractor.Extractor(
    extractor.Settings('random:1', tap=64), batch_size=4
  )


@functools.cache
def reference():
  return one_device().statistics([{'image': IMAGES}])


def assert_same(found, expected):
  np.testing.assert_allclose(
    found.features, expected.features, rtol=1e-5, atol=1e-5
  )
  assert found.count == expected.count
  np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5)
  np.testing.assert_allclose(
    found.covariance, expected.covariance, rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('sizes', [[7], [1, 6], [4, 3], [2, 2, 3]])
def test_the_batch_size_is_of_no_consequence(sizes):
  batches = [
    {'image': part} for part in np.split(IMAGES, np.cumsum(sizes)[:-1])
  ]
  assert_same(one_device().statistics(batches), reference())


def test_masked_images_do_not_count():
  padding = np.full((4, 32, 40, 3), 255, np.uint8)
  mask = np.array([1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0], np.float32)
  images = padding[[0] * 11].copy()
  images[mask > 0] = IMAGES
  found = one_device().statistics([{'image': images, 'mask': mask}])
  assert_same(found, reference())


def test_arrays_on_devices_and_floats():
  batches = [
    {'image': jnp.asarray(IMAGES[:4]), 'mask': jnp.ones(4)},
    {'image': jnp.asarray(IMAGES[4:], jnp.float32) + 0.4},  # will be rounded
  ]
  assert_same(one_device().statistics(batches), reference())


def test_images_of_differing_sizes():
  images = list(IMAGES)
  odd = RNG.integers(0, 256, (50, 20, 3), np.uint8)
  found = one_device().statistics([{'image': [*images, odd]}])
  assert found.count == 8
  np.testing.assert_allclose(
    found.features[:7], reference().features, rtol=1e-5, atol=1e-5
  )
  alone = one_device().statistics([{'image': odd[None]}])
  np.testing.assert_allclose(found.features[7], alone.features[0], rtol=1e-5)


@pytest.mark.parametrize('count', [1, 2])
def test_large_images_are_resized_on_the_host(monkeypatch, count):
  large = RNG.integers(0, 256, (count, 1025, 1024, 3), np.uint8)
  features = one_device()
  expected = np.concatenate([*features.features({'image': large})])
  monkeypatch.setattr(features, '_prepare', None)  # the device's resizing
  found = np.concatenate([*features.features({'image': list(large)})])
  assert found.shape == (count, 64)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_image_at_all():
  assert one_device().statistics([]).count == 0


def test_devices_share_the_batches():
  devices = np.array(jax.devices())
  assert len(devices) == 8
  mesh = Mesh(devices.reshape(4, 2, 1), ('data', 'fsdp', 'tensor'))
  found = extractor.Extractor(extractor.Settings('random:1', tap=64), 3, mesh)
  assert found.batch_size == 8  # a multiple of the devices
  assert_same(found.statistics([{'image': IMAGES}]), reference())
  placed = next(iter(found._cut(IMAGES)))
  assert len(placed.addressable_shards) == 8
  assert placed.addressable_shards[0].data.shape == (1, 32, 40, 3)


_PROCESS = """
import sys
import jax
rank, port, folder, out = sys.argv[1:]
jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(rank))
import numpy as np
from vit22b_jax.fid import extractor, image_sources
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
assert mesh.size == 2
features = extractor.Extractor(extractor.Settings('random:1', tap=64), 4, mesh)
source = image_sources.find(folder, dir='', open_generator=None)
found = features.statistics(source.batches(features.batch_size))
np.save(out, found.features)
"""


@pytest.mark.slow
def test_processes_share_the_batches(tmp_path):
  for row, image in enumerate(IMAGES):
    Image.fromarray(image).save(tmp_path / f'{row}.png')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = str(free.getsockname()[1])
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', _PROCESS, str(rank), port, str(tmp_path)),
        str(tmp_path / f'{rank}.npy'),
      ],
      cwd=pathlib.Path(__file__).parents[2],
      env=environment,
    )
    for rank in range(2)
  ]
  assert [process.wait() for process in processes] == [0, 0]
  found = [np.load(tmp_path / f'{rank}.npy') for rank in range(2)]
  np.testing.assert_array_equal(*found)  # each knows the features of all
  expected = reference().features
  np.testing.assert_allclose(
    np.sort(found[0], axis=0), np.sort(expected, axis=0), rtol=1e-5
  )


def test_features_that_are_not_finite():
  images = IMAGES.astype(np.float32)
  images[2, 3] = np.nan
  with pytest.raises(errors.UserError, match='1 of 7 images have features'):
    one_device().statistics([{'image': images}])


def test_facts():
  assert one_device().facts == {
    'tap': 64,
    'resize': 'clean',
    'quantize': 'round',
    'weights_sha256': hashlib.sha256(b'random:1').hexdigest(),
    'calibrated': False,
  }


# --- Moments -----------------------------------------------------------------


def test_moments_match_numpy():
  x = RNG.standard_normal((101, 5)).astype(np.float32) * 3 + 100
  found = statistics.Statistics.of(x)
  wide = x.astype(np.float64)
  np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12)
  expected = np.cov(wide, rowvar=False)
  np.testing.assert_allclose(found.covariance, expected, rtol=1e-10)
  assert found.covariance.dtype == found.mean.dtype == np.float64
  np.testing.assert_array_equal(found.features, x)
  assert found.count == 101


def test_files_go_both_ways(tmp_path):
  found = statistics.Statistics.of(RNG.standard_normal((9, 4)), {'tap': 4})
  path = tmp_path / 'x.npz'
  path.write_bytes(statistics.to_bytes(found))
  with np.load(path) as file:  # as pytorch-fid reads it
    np.testing.assert_array_equal(file['mu'], found.mean)
    np.testing.assert_array_equal(file['sigma'], found.covariance)
  back = statistics.Statistics.load(path, 4)
  np.testing.assert_array_equal(back.covariance, found.covariance)
  assert (back.count, back.facts) == (9, {'tap': 4})
  np.savez(path, mu=found.mean, sigma=found.covariance)  # as it writes it
  back = statistics.Statistics.load(path)
  assert (back.count, back.facts, back.features) == (None, {}, None)


FOUR = {'mu': np.zeros(4), 'sigma': np.eye(4)}


@pytest.mark.parametrize(
  'arrays, message',
  [
    ({'mu': np.zeros(3), 'sigma': np.eye(3)}, 'of 3 features, expected 4'),
    ({'mu': np.zeros(4), 'sigma': np.eye(3)}, r'mu has shape \[4\].*\[3, 3\]'),
    ({'mean': np.zeros(4)}, "holds mean; expected 'mu' and 'sigma'"),
    ({'mu': np.full(4, np.nan), 'sigma': np.eye(4)}, 'mu has NaN'),
    ({'mu': np.zeros(4), 'sigma': np.full((4, 4), np.inf)}, 'sigma has NaN'),
    ({'mu': np.array([object()]), 'sigma': np.eye(4)}, 'no .npz file'),
    ({'mu': np.zeros(4, complex), 'sigma': np.eye(4)}, 'mu is of type complex'),
    (
      {'mu': np.zeros(4), 'sigma': np.eye(4).astype(str)},
      'sigma is of type <U',
    ),
    ({'mu': np.zeros(4), 'sigma': np.tri(4)}, 'sigma is not symmetric'),
    ({'mu': np.zeros(4), 'sigma': -np.eye(4)}, 'negative eigenvalue -1,'),
    ({'mu': np.zeros((4, 1)), 'sigma': np.eye(4)}, r'shape \[4, 1\]'),
    ({**FOUR, 'facts': 'no JSON'}, 'facts is not what'),
    ({**FOUR, 'facts': '[1]'}, 'facts is not what'),
    ({**FOUR, 'facts': '{"tap": 4}'}, 'facts is not what'),
    ({**FOUR, 'facts': np.zeros(3)}, 'facts is not what'),
    ({**FOUR, 'facts': '{"count": -3}'}, 'a count of 2 images at least.*-3'),
    ({**FOUR, 'facts': '{"count": 1e9}'}, 'a count of 2 images at least'),
    ({**FOUR, 'facts': '{"count": true}'}, 'a count of 2 images at least'),
    (
      {**FOUR, 'facts': '{"count": 9, "resize": "torch", "quantise": "round"}'},
      "pytorch-fid's range of inputs",
    ),
  ],
)
def test_statistics_files_that_do_not_fit(arrays, message, tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, **arrays)
  with pytest.raises(errors.UserError, match=message):
    statistics.Statistics.load(path, 4)


def test_statistics_files_that_are_none(tmp_path):
  with pytest.raises(errors.UserError, match='no statistics file'):
    statistics.Statistics.load(tmp_path / 'x.npz')
  os.mkfifo(tmp_path / 'pipe.npz')  # to open it waits for ever
  with pytest.raises(errors.UserError, match='no statistics file'):
    statistics.Statistics.load(tmp_path / 'pipe.npz')
  (tmp_path / 'x.npz').write_bytes(b'PK damaged')
  with pytest.raises(errors.UserError, match='is damaged'):
    statistics.Statistics.load(tmp_path / 'x.npz')
