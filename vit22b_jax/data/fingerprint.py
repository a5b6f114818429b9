"""Which images a run was trained on, in a few lines that can be compared.

    marks = fingerprint.of(found, class_names, {'val': rows})
    differences = fingerprint.compare(saved, marks)  # [] if nothing changed

A fingerprint maps each part (`train/cat`) to its number of images and a hash of
their names below the data folder and sizes. It stays when a folder is moved or
copied, and what was held out is a part of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vit22b_jax.data import records

Fingerprint = Mapping[str, Sequence[int | str]]


def of(
  found: Mapping[str, records.Records],
  names: Sequence[str],
  held_out: Mapping[str, Int[np.ndarray, ' n']],
) -> Fingerprint:
  """Returns {part: [number of images, hash]}, JSON-able.

  Args:
    found: the records of each split.
    names: of the classes; folders are told class by class.
    held_out: rows of the training records that validate, by name.
  """
  marks = {}
  for split, part in found.items():
    listing = part.listing()
    if not names or len(listing) != len(part):
      marks[split] = [len(part), records.digest(listing)]
      continue
    labels = part.labels()
    for label in np.unique(labels).tolist():
      rows = np.flatnonzero(labels == label)
      marks[f'{split}/{names[label]}'] = [
        len(rows),
        records.digest([listing[row] for row in rows]),
      ]
  for name, rows in held_out.items():
    marks[f'{name} (held out)'] = [len(rows), records.digest(rows.tolist())]
  return marks


def compare(old: Fingerprint, new: Fingerprint) -> list[str]:
  """Lists what differs between two fingerprints, a line for each part.

  >>> compare({'train/cat': [16, 'a']}, {'train/cat': [80, 'b']})
  ['train/cat: 16 images, now 80']
  """
  lines = []
  for part in sorted({*old, *new}):
    before, now = old.get(part), new.get(part)
    if before == now:
      continue
    if before is None:
      lines.append(f'{part}: {now[0]} images, before none')
    elif now is None:
      lines.append(f'{part}: {before[0]} images, now none')
    elif before[0] != now[0]:
      lines.append(f'{part}: {before[0]} images, now {now[0]}')
    else:
      lines.append(f'{part}: {now[0]} images, but not the same (name or size)')
  return lines
