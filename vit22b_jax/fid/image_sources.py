"""Opens what a comparison names: a folder, a TFDS split, a run's generator.

    source = image_sources.find('tfds:cycle_gan/monet2photo:testA', dir='...')
    statistics = source.statistics(extractor)

Images come upright, transparency over white, of whatever size, in batches for
`Extractor`; clean-fid's and pytorch-fid's `Image.open(path).convert('RGB')`
does neither.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import cache, decode, encoded
from vit22b_jax.data.readers import folders, tfds
from vit22b_jax.fid import extractor, statistics
from vit22b_jax.runtime import console

FORMS = (
  "a folder of images, 'tfds:NAME:SPLIT' (such as "
  "tfds:cycle_gan/monet2photo:testA), 'WORKDIR:a2b' or 'WORKDIR:b2a' for a "
  "run's generator, or an .npz file with mu and sigma"
)
# The two ways of a translation: from which domain to which.
DIRECTIONS = {'a2b': ('a', 'b'), 'b2a': ('b', 'a')}

Batches = Iterator[extractor.Batch]


@dataclasses.dataclass(frozen=True)
class Source:
  """Opens a set of images.

  Attributes:
    name: as the user wrote it; '' says nothing of its features' place.
    batches: the images in batches of a size, from the start.
    place: where the images are; of a place, the last identity is cached.
    identity: changes when the images do, JSON-able; None for what is not to be
      cached.
  """

  name: str
  batches: Callable[[int], Batches]
  place: str = ''
  identity: Any = None

  def statistics(self, features: extractor.Extractor) -> statistics.Statistics:
    """Finds the images' statistics in the cache on disk, or computes them."""
    # Several processes must agree on what they compute, so all compute it.
    if self.identity is None or jax.process_count() > 1:
      return features.statistics(self.batches(features.batch_size))
    facts = features.facts
    place = f'{self.place}?{sorted(facts.items())}'
    path = cache.folder('fid', place, self.identity)
    kept = cache.read(path)
    if kept is not None:
      if self.name:
        console.say(f'{self.name}: features from {path}')
      return statistics.Statistics.of(np.array(kept[0]['features']), facts)
    found = features.statistics(self.batches(features.batch_size))
    cache.write(path, {'features': found.features}, facts)
    return found


def find(
  spec: str, *, dir: str, open_generator: Callable[[str, str], Batches]
) -> Source:
  """Opens what `spec` names, without reading images.

  Args:
    spec: one of FORMS but the last.
    dir: where TFDS sets are prepared; '' means TFDS_DATA_DIR or its default.
    open_generator: (workdir, direction) -> batches of what the run's generator
      makes of its test part.

  Raises:
    UserError: there's no such thing, or no image in it.
  """
  start, _, end = spec.rpartition(':')
  if end in DIRECTIONS:
    return Source(spec, lambda _: open_generator(start, end))
  if spec.startswith('tfds:'):
    found, split = _tfds(spec, dir), end
  else:
    found, split = _folder(spec), ''
  place = f'{found.place}:{split}'
  batches = functools.partial(_batches, found)
  return Source(spec, batches, place, found.identity())


def _folder(spec: str) -> encoded.Records:
  path = epath.Path(spec).expanduser()
  if not spec or not path.is_dir():
    raise errors.UserError(f'there is no folder {spec!r}; expected {FORMS}.')
  if (path / 'checkpoints').is_dir():
    raise errors.UserError(
      f'{spec!r} is the folder of a run: name the generator as well, '
      f'{spec}:a2b or {spec}:b2a.'
    )
  found = folders.find_unlabeled(str(path))
  if not len(found):
    raise errors.UserError(f'there is no image in the folder {spec!r}.')
  return found


def _tfds(spec: str, dir: str) -> encoded.Records:
  name, _, split = spec.removeprefix('tfds:').rpartition(':')
  if not name:
    raise errors.UserError(f"{spec!r}: expected 'tfds:NAME:SPLIT'.")
  found = tfds.find_unlabeled(name, dir)
  if split not in found:
    raise errors.UserError(
      f'the TFDS set {name!r} has no split {split!r}, only {", ".join(found)}.'
    )
  return found[split]


def _batches(images: encoded.Records, size: int) -> Batches:
  """Yields lists of decoded images, each process its share of a batch.

  Every process gets as many batches, filled up with the last image or a black
  one.
  """
  process, count = jax.process_index(), jax.process_count()
  rows, share = np.arange(process, len(images), count), size // count
  # One image at a time in each thread, since photos are large.
  found = encoded.apply(images, decode.resized, rows, chunk=1)
  numbered = zip(rows.tolist(), found, strict=True)
  image = np.zeros((8, 8, 3), np.uint8)
  for _ in range(-(-len(images) // size)):
    batch = []
    for row, (image, _) in itertools.islice(numbered, share):
      if isinstance(image, decode.CorruptImage):
        raise errors.UserError(
          f'{images.name(row)} could not be read ({image}): mend or delete it, '
          'since a distance depends on every image.'
        )
      batch.append(image)
    mask = (np.arange(share) < len(batch)).astype(np.float32)
    yield {'image': batch + [image] * (share - len(batch)), 'mask': mask}
