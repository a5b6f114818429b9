"""Lazy splits -> decoded images in memory, by threads and once: then cached."""

import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from vit22b_jax.data import cache, decode, encoded, splits

_WORTH_SAYING = 50_000_000  # Bytes of pixels: some seconds.


def in_memory(
  name: str,
  path: pathlib.Path,
  parts: Mapping[str, splits.LazySplit],
  unreadable: splits.Unreadable,
  image_size: int | None = None,
) -> dict[str, splits.ArraySplit]:
  """Decodes splits, without corrupt images, or finds them in the cache.

  Args:
    name: of the data set, for messages.
    path: of `cache.folder`.
    parts: by name; each decodes images to one size.
    unreadable: counts corrupt images.
    image_size: side of the records, where images are stored smaller.

  Raises:
    UserError: too many images are unreadable, or a label is out of range.
  """
  found = cache.read(path)
  if found is None:
    if sum(part.num_bytes for part in parts.values()) > _WORTH_SAYING:
      count = sum(map(len, parts.values()))
      logging.info(
        'decoding %d images of %s, to be kept in %s', count, name, path
      )
    found = _decode_all(parts)
    cache.write(path, *found)
  arrays, corrupt = found
  unreadable.add(corrupt)
  opened = {}
  for key, part in parts.items():
    labels, what = None, f'{name} {key}'
    if part.num_classes is not None:
      labels = arrays[f'{key}_labels']
      splits.validate_labels(
        labels, part.num_classes, lambda i, what=what: f'{what}[{i}]'
      )
    opened[key] = splits.ArraySplit(arrays[f'{key}_images'], labels, image_size)
  return opened


def _decode_all(
  parts: Mapping[str, splits.LazySplit],
) -> tuple[cache.Arrays, list[str]]:
  """Returns `PART_images` and `PART_labels`, and what can't be read."""
  arrays, corrupt = {}, []
  for key, part in parts.items():
    images = np.empty((len(part), *part.shape, 3), np.uint8)
    labels, readable = [], np.ones(len(part), bool)
    decoded = encoded.apply(part.records, part.decode, part.indices)
    for row, (image, label) in enumerate(decoded):
      labels.append(label)
      if isinstance(image, decode.CorruptImage):
        readable[row] = False
        corrupt.append(f'{part.name(row)} ({image})')
      else:
        images[row] = image
    if not readable.all():  # else spare the copy
      images = images[readable]
    arrays |= {
      f'{key}_images': images,
      f'{key}_labels': np.array(labels)[readable],
    }
  return arrays, corrupt
