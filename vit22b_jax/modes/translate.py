"""A folder of images, translated: PNGs of the same names, and a page of pairs.

    done = translate.run(task, variables, 'photos', 'b2a', 'runs/x/translated')
    done.files, done.unreadable, done.page

A generator that takes other sizes than its training's (a ResNet, a ViTUnet with
`resample='space'`) sees an image in the size that it has, cut down to the next
that divides as it must; what one made is brought to the size of the original.
"""

import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from vit22b_jax import errors
from vit22b_jax.data import decode
from vit22b_jax.data.readers import walk
from vit22b_jax.fid import sources
from vit22b_jax.models import generators
from vit22b_jax.report import samples, templates
from vit22b_jax.runtime import workdir
from vit22b_jax.tasks import translation

PAGE = 'index.html'
FILES = 'files.json'  # names of the PNGs that a call has made
_PAGE_PAIRS = 200  # on the page; all are in the folder
_PAGE_PIXELS = 256  # longest side there

Pixels = UInt8[np.ndarray, 'H W 3']


@dataclasses.dataclass(frozen=True)
class Done:
  """What `run` did.

  Attributes:
    files: the PNGs, below the output folder, in the order of their inputs.
    unreadable: inputs that could not be read.
    page: the HTML page.
  """

  files: list[str]
  unreadable: list[str]
  page: epath.Path


@dataclasses.dataclass(frozen=True)
class _Pair:
  """An image of the page, before and after, as data URLs."""

  name: str
  before: str
  after: str


def run(
  task: Any,
  variables: dict[str, Any],
  input_folder: epath.PathLike,
  direction: str,
  out_folder: epath.PathLike,
) -> Done:
  """Translates every readable image below a folder.

  The PNGs that an earlier call made there are deleted, unless made anew: what
  is in the folder is what the page shows.

  Args:
    task: the run's task; needs no data.
    variables: the generators' parameters.
    input_folder: searched through, in sorted order; `out_folder` may lie in it,
      and is left aside.
    direction: 'a2b' or 'b2a'.
    out_folder: made if missing.

  Raises:
    UserError: the run is of another task, the direction or the folder doesn't
      exist, it holds no readable image, or results can't be written.
  """
  if not isinstance(task, translation.Translation):
    raise errors.UserError(
      f'--mode=translate needs the --workdir of an image translation, and this '
      f'one is of a {task.config.task}: use --mode=predict with it.'
    )
  errors.validate_choice('--direction', direction, sources.DIRECTIONS)
  source, target = (
    path if workdir.is_remote(path) else path.resolve()
    for path in map(epath.Path, (input_folder, out_folder))
  )
  if not source.is_dir():
    raise errors.UserError(f'--input={input_folder} is not a folder of images.')
  names = _output_names(source, target)
  unreadable: list[str] = []
  pairs, files = {}, {}
  earlier = _earlier(target)
  if names:  # said before they are made: a call may be cut off
    _write_names(target, earlier | set(names.values()))
  found = _read(source, names, unreadable)
  for name, before, after in _translated(task, variables, found, direction):
    files[name] = names[name]
    _write(target / names[name], samples.png(after))
    if len(pairs) < _PAGE_PAIRS:
      pairs[name] = _Pair(name, _thumbnail(before), _thumbnail(after))
  if not files:
    raise errors.UserError(
      f'--input={input_folder} holds no readable image ({len(unreadable)} '
      'files that could not be read).'
    )
  # Batches are of images of one size; the page is in the order of the names.
  shown = [pairs[name] for name in names if name in pairs]
  page = _page(task.names, direction, shown, len(files), unreadable)
  _write(target / PAGE, page.encode())
  for name in earlier - set(files.values()):
    (target / name).unlink(missing_ok=True)
  _write_names(target, set(files.values()))
  return Done(
    [files[name] for name in names if name in files], unreadable, target / PAGE
  )


def _earlier(target: epath.Path) -> set[str]:
  """Names of the PNGs that earlier calls made, none outside of the folder."""
  try:
    names = json.loads((target / FILES).read_text())
  except (OSError, ValueError):
    return set()
  return {n for n in names if n.endswith('.png') and _is_inside(n)}


def _is_inside(name: str) -> bool:
  path = epath.Path(name)
  return not path.is_absolute() and '..' not in path.parts


def _write_names(target: epath.Path, names: set[str]) -> None:
  _write(target / FILES, (json.dumps(sorted(names), indent=0) + '\n').encode())


def _output_names(source: epath.Path, target: epath.Path) -> dict[str, str]:
  """A PNG's name for each image file; x.jpg beside x.png becomes x.jpg.png."""
  inputs = [
    str(path.relative_to(source))
    for path in walk.find_images(source)
    if target not in path.parents
  ]
  plain = [str(epath.Path(name).with_suffix('.png')) for name in inputs]
  return {
    name: png if plain.count(png) == 1 else f'{name}.png'
    for name, png in zip(inputs, plain, strict=True)
  }


def _read(
  source: epath.Path, names: dict[str, str], unreadable: list[str]
) -> Iterator[tuple[str, Pixels]]:
  """Images in their own sizes, by name."""
  for name in names:
    try:
      data = (source / name).read_bytes()
      image = decode.resized(data)
    except (OSError, decode.CorruptImage):
      unreadable.append(name)
      continue
    yield name, image


def _translated(
  task: translation.Translation,
  variables: dict[str, Any],
  images: Iterator[tuple[str, Pixels]],
  direction: str,
) -> Iterator[tuple[str, Pixels, Pixels]]:
  """Name, original and translation of each image, batched by size."""
  waiting: dict[tuple[int, int], list[tuple[str, Pixels]]] = {}

  def translate(size):
    batch = waiting.pop(size)
    inputs = np.stack([_resized(image, size) for _, image in batch])
    # Few different batch sizes, since each is a program of its own.
    rows = 1 << (len(batch) - 1).bit_length()
    inputs = np.pad(inputs, ((0, rows - len(batch)), (0, 0), (0, 0), (0, 0)))
    made = np.asarray(task.translate(variables, inputs, direction))
    for (name, before), after in zip(batch, made, strict=False):
      yield name, before, _resized(after, before.shape[:2])

  for name, image in images:
    size = generators.fitting_size(task.networks.generator, *image.shape[:2])
    waiting.setdefault(size, []).append((name, image))
    if len(waiting[size]) == task.eval_batch_size:
      yield from translate(size)
  for size in list(waiting):
    yield from translate(size)


def _resized(image: Pixels, size: tuple[int, int]) -> Pixels:
  if image.shape[:2] == size:
    return image
  resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
  return np.asarray(resized)


def _thumbnail(image: Pixels) -> str:
  """A data URL of the image, shrunk to what the page shows."""
  small = Image.fromarray(image)
  small.thumbnail((_PAGE_PIXELS, _PAGE_PIXELS), Image.Resampling.BICUBIC)
  out = io.BytesIO()
  small.save(out, 'JPEG', quality=88)
  return f'data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}'


def _page(
  domains: list[str],
  direction: str,
  pairs: list[_Pair],
  total: int,
  unreadable: list[str],
) -> str:
  source, target = domains if direction == 'a2b' else domains[::-1]
  return (
    templates.environment()
    .get_template('pairs.html')
    .render(
      source=source,
      target=target,
      direction=direction,
      pairs=pairs,
      total=total,
      unreadable=unreadable,
    )
  )


def _write(path: epath.Path, content: bytes) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  except OSError as error:
    raise errors.UserError(
      f'Could not write {path}: {error.strerror or error}. Make room or choose '
      'another folder.'
    ) from error
