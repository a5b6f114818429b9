"""Frechet and kernel Inception distances of two sets of images.

extractor = fid.Extractor(fid.Settings(tap=2048))
a, b = extractor.statistics(batches_a), extractor.statistics(batches_b)
distances.measure(a, b)  # {'fid', 'kid', 'kid_stderr', 'num_a', 'num_b'}
"""

from vit22b_jax.fid import distances
from vit22b_jax.fid.extractor import Extractor, Settings
from vit22b_jax.fid.statistics import Statistics

__all__ = ['Extractor', 'Settings', 'Statistics', 'distances']
