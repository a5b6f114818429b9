"""Which images a run was trained on, in a few lines that can be compared.

    marks = fingerprint.of(found, class_names, {'val': rows})
    differences = fingerprint.compare(saved, marks)  # [] if nothing changed

A fingerprint maps each part (`train/cat`) to a text: its number of images, and
a hash of their names below the data folder and sizes. It stays when a folder is
moved or copied, and what was held out is a part of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vit22b_jax.data import encoded, files

Fingerprint = Mapping[str, str]


def of(
  found: Mapping[str, encoded.Records],
  names: Sequence[str],
  held_out: Mapping[str, Int[np.ndarray, ' n']],
) -> Fingerprint:
  """Returns {part: "NUMBER HASH"}, of folders class by class.

  `held_out` are rows of training records that validate.
  """
  marks = {}
  for split, part in found.items():
    listing = part.listing()
    if part.multi_label:
      marks[split] = _mark(len(part), [listing, part.labels().tolist()])
    elif not names or len(listing) != len(part):
      marks[split] = _mark(len(part), listing)
    else:
      labels = part.labels()
      for label in np.unique(labels).tolist():
        some = [listing[row] for row in np.flatnonzero(labels == label)]
        marks[f'{split}/{names[label]}'] = _mark(len(some), some)
  for name, rows in held_out.items():
    marks[f'{name} (held out)'] = _mark(len(rows), rows.tolist())
  return marks


def compare(old: Fingerprint, new: Fingerprint) -> list[str]:
  """Lists what differs between two fingerprints, a line for each part.

  >>> compare({'train/cat': '16 3f'}, {'train/cat': '80 d0'})
  ['train/cat: 16 images, now 80']
  """
  lines = []
  for part in sorted({*old, *new}):
    if old.get(part) == new.get(part):
      continue
    before, now = (
      marks.get(part, '0').partition(' ')[0] for marks in (old, new)
    )
    if before == now:
      now = f'{now}, but not the same (name or size)'
    lines.append(f'{part}: {before} images, now {now}')
  return lines


def _mark(count: int, content: list[Any]) -> str:
  return f'{count} {files.digest(content)}'
