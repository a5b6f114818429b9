"""The benchmark of Inception's features."""

import importlib.util

import pytest

from experiments.throughput import inception, training_step


def test_a_row_has_features_a_second(monkeypatch):
  class Fake:
    parameters = 1

    def __init__(self, side, module, tap, batch_size, *threads):
      assert (tap, batch_size) == (64, 8)
      assert (
        module == {'ours': 'ours_inception', 'peer': 'peers_inception'}[side]
      )
      assert len(threads) == (side == 'peer')
      self._seconds = iter({'ours': [9, 2, 2], 'peer': [9, 4, 4]}[side])

    def step(self):
      return float(next(self._seconds))

    def close(self):
      assert next(self._seconds, None) is None

  monkeypatch.setattr(training_step, 'Runner', Fake)
  assert inception.measure(64, 8, warmup=1, repeats=2) == {
    'name': 'Inception, tap 64, batch 8',
    'ours_ms': 2000,
    'peer': 'torch-fidelity',
    'peer_ms': 4000,
    'ratio': 2,
    'ours_features_per_second': 4,
    'peer_features_per_second': 2,
  }


@pytest.mark.slow
def test_both_sides_compute_the_same():
  for name in ('torch', 'torch_fidelity'):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f'{name} is in the extra `peers`')
  from experiments.throughput import ours_inception, peers_inception

  ours, count = ours_inception.training_step(192, 2)
  peer, theirs = peers_inception.training_step(192, 2, 1)
  assert count == theirs
  assert ours() == pytest.approx(peer(), rel=1e-5)
