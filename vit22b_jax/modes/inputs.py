"""The images of `--input`: a folder, searched through, or one file.

folder, names = inputs.find('photos')
images = inputs.decoded(folder, names, decode.resized, notes := [])
"""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from vit22b_jax import errors
from vit22b_jax.data import decode, files
from vit22b_jax.data.readers import walk
from vit22b_jax.runtime import workdir


def find(
  given: epath.PathLike, leave_out: epath.Path | None = None
) -> tuple[epath.Path, list[str]]:
  """Finds the images that --input names.

  Returns:
    The folder, and the paths relative to it of its images at any depth, sorted,
    without those in `leave_out`.

  Raises:
    UserError: there is no such folder or file.
  """
  workdir.validate_place(given)
  path = epath.Path(given)
  if files.is_file(path):
    return path.parent, [path.name]
  if not path.is_dir():
    raise errors.UserError(
      f'--input={given} is not a folder of images and not a file.'
    )
  names = [os.fspath(file.relative_to(path)) for file in walk.find_images(path)]
  if leave_out is None:
    return path, names
  root, left = (pathlib.Path(x).resolve() for x in (path, leave_out))
  return path, [name for name in names if left not in (root / name).parents]


def decoded(
  folder: epath.Path,
  names: list[str],
  decoder: Callable[[bytes], Any],
  notes: list[str],
) -> Iterator[tuple[str, Any]]:
  """Yields names and decoded files; `notes` gets a line for each other one."""
  for name in names:
    try:
      image = decoder((folder / name).read_bytes())
    except (OSError, decode.CorruptImage) as error:
      why = getattr(error, 'strerror', None) or error
      notes.append(f'{name} could not be read ({why}); left out.')
      continue
    yield name, image


def no_image(given: epath.PathLike, notes: list[str]) -> errors.UserError:
  """Returns the error for an --input of which no image could be used."""
  shown = ''.join(f'\n  {note}' for note in notes[:3])
  more = f'\n  and {len(notes) - 3} others.' * (len(notes) > 3)
  end = f':{shown}{more}' if notes else '.'
  return errors.UserError(f'--input={given} holds no readable image{end}')
