"""The same numbers as torch-fidelity, torchmetrics and pytorch-fid.

From the same weights.

Needs the extra `peers`.
"""

import importlib.util

import numpy as np
import pytest

from tests.helpers import golden_params
from vit22b_jax.fid import (
  distances,
  extractor,
  inception_resize,
  inception_weights,
)
from vit22b_jax.models import inception

pytestmark = [
  pytest.mark.slow,
  # torchmetrics warns about the memory it needs.
  pytest.mark.filterwarnings('ignore'),
]
RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def torch():
  for name in ('torch', 'torch_fidelity', 'torchmetrics'):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f'{name} is in the extra `peers`')
  from experiments.throughput import peers

  peers.import_torchvision()
  import torch

  return torch


@pytest.fixture(scope='module')
def path(torch, tmp_path_factory):
  """The drawn weights as a file that torch wrote."""
  _, config = golden_params.load('inception_fid')
  state = {
    name: torch.tensor(0)
    if name.endswith('num_batches_tracked')
    else torch.from_numpy(inception_weights.draw('0', name, tuple(shape)))
    for name, shape in config['shapes'].items()
  }
  file = tmp_path_factory.mktemp('weights') / 'inception.pth'
  torch.save(state, file)
  return str(file)


def images(count, low, high):
  """Blocks of color and noise, of which sets differ by their range."""
  color = RNG.integers(low, high, (count, 4, 4, 3))
  noise = RNG.integers(-20, 20, (count, 32, 32, 3))
  pixels = color.repeat(8, axis=1).repeat(8, axis=2) + noise
  return pixels.clip(0, 255).astype(np.uint8)


def nchw(torch, batch):
  return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))


def ours(path, tap, *sets):
  settings = extractor.Settings(path, tap, resize='tf1')
  features = extractor.Extractor(settings, batch_size=16)
  return [features.statistics([{'image': images}]) for images in sets]


def torch_fidelity_features(torch, path, taps, batch):
  from torch_fidelity import feature_extractor_inceptionv3 as peer

  model = peer.FeatureExtractorInceptionV3(
    'peer', list(taps), feature_extractor_weights_path=path
  )
  with torch.no_grad():
    return [f.numpy() for f in model(nchw(torch, batch))]


def test_features_of_torch_fidelity(torch, path):
  taps = tuple(inception.TAPS)
  batch = images(3, 0, 256)
  expected = torch_fidelity_features(torch, path, taps, batch)
  for tap, peer in zip(taps, expected, strict=True):
    if tap == 'logits':
      model = inception.Inception((tap,))
      params, _ = inception_weights.load(path, (tap,))
      resized = inception_resize.batch(batch.astype(np.float32), 'tf1')
      found = np.asarray(model.apply({'params': params}, resized)[tap])
    else:
      found = ours(path, int(tap), batch)[0].features
    assert np.abs(found - peer).max() < 1e-5 * np.abs(peer).max(), tap


# Enough images for a full covariance, or (the last one) far too few.
@pytest.mark.parametrize('tap, counts', [(64, (90, 80)), (2048, (12, 9))])
def test_distances_of_torch_fidelity(torch, path, tap, counts):
  from torch_fidelity import metric_fid, metric_kid

  a, b = images(counts[0], 0, 256), images(counts[1], 30, 220)
  x, y = ours(path, tap, a, b)
  peer = [
    torch.from_numpy(
      torch_fidelity_features(torch, path, (str(tap),), batch)[0]
    )
    for batch in (a, b)
  ]
  statistics = [metric_fid.fid_features_to_statistics(f.double()) for f in peer]
  expected = metric_fid.fid_statistics_to_metric(*statistics, False)
  value = expected[metric_fid.KEY_METRIC_FID]
  assert distances.frechet(x, y) == pytest.approx(value, rel=1e-4)
  size = min(counts)  # whole sets of one size, so that nothing is random
  expected = metric_kid.kid_features_to_metric(
    *(f[:size] for f in peer),
    kid_subsets=1,
    kid_subset_size=size,
    rng_seed=0,
    verbose=False,
  )
  found, _ = distances.kernel(x.features[:size], y.features[:size])
  value = expected[metric_kid.KEY_METRIC_KID_MEAN]
  assert found == pytest.approx(value, rel=1e-4)


def pytorch_fid_features(torch, path, monkeypatch, tap, batch):
  """As pytorch-fid's `get_activations` computes them, of uint8 images."""
  peer = pytest.importorskip('pytorch_fid.inception')
  monkeypatch.setattr(
    peer, 'load_state_dict_from_url', lambda *_, **__: torch.load(path)
  )
  model = peer.InceptionV3([peer.InceptionV3.BLOCK_INDEX_BY_DIM[tap]]).eval()
  with torch.no_grad():
    (maps,) = model(nchw(torch, batch).float() / 255)
  return maps.double().mean(dim=(2, 3)).numpy()


@pytest.mark.parametrize('tap', [64, 2048])
def test_features_of_pytorch_fid(torch, path, tap, monkeypatch):
  """`fid.resize=torch`: its resizing, and its range of inputs."""
  a, b = images(70, 0, 256), images(66, 30, 220)
  expected = [
    pytorch_fid_features(torch, path, monkeypatch, tap, batch)
    for batch in (a, b)
  ]
  features = extractor.Extractor(
    extractor.Settings(path, tap, resize='torch'), 16
  )
  found = [features.statistics([{'image': batch}]) for batch in (a, b)]
  for ours_, peer in zip(found, expected, strict=True):
    assert np.abs(ours_.features - peer).max() < 1e-5 * np.abs(peer).max()
  if tap == 64:  # enough images for its square root of matrices
    from pytorch_fid import fid_score

    moments = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in expected]
    value = fid_score.calculate_frechet_distance(*moments[0], *moments[1])
    assert distances.frechet(*found) == pytest.approx(value, rel=1e-4)


def test_distance_of_torchmetrics(torch, path):
  from torchmetrics.image import fid as peer

  metric = peer.FrechetInceptionDistance(
    feature=64,
    feature_extractor_weights_path=path,
    antialias=False,  # so that it resizes by `tf1`
  )
  a, b = images(90, 0, 256), images(80, 30, 220)
  with torch.no_grad():
    metric.update(nchw(torch, a), real=True)
    metric.update(nchw(torch, b), real=False)
  expected = float(metric.compute())
  x, y = ours(path, 64, a, b)
  assert distances.frechet(x, y) == pytest.approx(expected, rel=1e-4)
