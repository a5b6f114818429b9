"""Records -> arrays of decoded images, by threads and once: then cached."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from vit22b_jax.data import cache, decode, records, splits

_WORTH_SAYING = 50_000_000  # Bytes of pixels: some seconds.


@dataclasses.dataclass(frozen=True)
class Part:
  """Records that are decoded alike.

  Attributes:
    records: encoded images.
    decode: turns a file's bytes into an image of `shape`.
    shape: height and width of the decoded images.
    rows: the records which belong to the part, sorted; all by default.
  """

  records: records.Records
  decode: Callable[[bytes], UInt8[np.ndarray, 'H W 3']]
  shape: tuple[int, int]
  rows: Int[np.ndarray, ' n'] | None = None

  def __len__(self) -> int:
    return len(self.records if self.rows is None else self.rows)

  @property
  def num_bytes(self) -> int:
    """Returns the size of the part in memory."""
    return len(self) * self.shape[0] * self.shape[1] * 3


def materialize(
  name: str, path: pathlib.Path, parts: Mapping[str, Part], max_corrupt: int
) -> tuple[cache.Arrays, dict[str, Any]]:
  """Returns decoded parts, from the cache when it has them.

  Args:
    name: of the data set, for messages.
    path: of `cache.folder`.
    parts: by name.
    max_corrupt: how many unreadable images are left out before it is an error.

  Returns:
    `PART_images` and `PART_labels` of each part; and `skipped`, the names of
    corrupt images, and `lost`, for each part the labels of which none could be
    read.

  Raises:
    UserError: more than `max_corrupt` images are unreadable.
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
  skipped = found[1]['skipped']
  for corrupt in skipped:
    logging.warning('skipped a corrupt image: %s', corrupt)
  splits.validate_corrupt(skipped, max_corrupt)
  return found


def _decode_all(
  parts: Mapping[str, Part],
) -> tuple[cache.Arrays, dict[str, Any]]:
  arrays, skipped, lost = {}, [], {}
  for key, part in parts.items():
    images = np.empty((len(part), *part.shape, 3), np.uint8)
    labels = np.empty(len(part), np.int32)
    readable = np.ones(len(part), bool)
    decoded = records.apply(part.records, part.decode, part.rows)
    for row, (image, labels[row]) in enumerate(decoded):
      if isinstance(image, decode.CorruptImage):
        readable[row] = False
        number = row if part.rows is None else int(part.rows[row])
        skipped.append(f'{part.records.name(number)} ({image})')
      else:
        images[row] = image
    lost[key] = np.setdiff1d(labels, labels[readable]).tolist()
    if not readable.all():
      images, labels = images[readable], labels[readable]
    arrays |= {f'{key}_images': images, f'{key}_labels': labels}
  return arrays, {'skipped': skipped, 'lost': lost}
