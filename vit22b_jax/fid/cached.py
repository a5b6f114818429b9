"""Statistics of images that were looked at before, from the cache on disk.

found = cached.compute(extractor, place, identity, batches, 'photos')
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from vit22b_jax.data import cache
from vit22b_jax.fid import extractor, statistics
from vit22b_jax.runtime import console


def compute(
  features: extractor.Extractor,
  place: str,
  identity: Any,
  batches: Callable[[], Iterable[extractor.Batch]],
  name: str = '',
) -> statistics.Statistics:
  """The statistics of a set: looked up, or computed and kept for next time.

  Args:
    features: how, and with which weights.
    place: where the images are; of a place, the last identity is kept.
    identity: changes when the images do, JSON-able; None for what is not to be
      cached.
    batches: gives the images, as `Extractor.statistics` takes them.
    name: what to call the set when its features are found; '' says nothing.
  """
  # Several processes must agree on what they compute, so they all compute it.
  if identity is None or jax.process_count() > 1:
    return features.statistics(batches())
  facts = features.facts()
  path = cache.folder('fid', f'{place}?{sorted(facts.items())}', identity)
  kept = cache.read(path)
  if kept is not None:
    if name:
      console.say(f'{name}: features from {path}')
    return statistics.Statistics.of(np.array(kept[0]['features']))
  found = features.statistics(batches())
  cache.write(path, {'features': found.features}, facts)
  return found
