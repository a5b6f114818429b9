"""The page: `write(workdir) -> report.html`, one file that needs no network.

The page carries Plotly compressed (2 MB in place of 5) and forbids itself every
request by its content security policy, so it works from disk, mail and buckets.
"""

import base64
import gzip
import io
from typing import Any

import jinja2
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from PIL import Image
from plotly import offline

from vit22b_jax import errors
from vit22b_jax.report import charts, maps, story
from vit22b_jax.report import workdir as workdir_lib

_SAMPLE_PIXELS = 96  # larger images are shrunk, which keeps the page small
_EVENTS = 50  # rows of the table of events
_CONFUSIONS = 8  # rows of the table of confused classes


def write(
  workdir: epath.PathLike, output: epath.PathLike | None = None
) -> epath.Path:
  """Writes the report of a run.

  Args:
    workdir: what a run wrote, finished or not.
    output: where the page goes; None means report.html in the workdir.

  Returns:
    Where the page is.

  Raises:
    errors.UserError: `workdir` is not a workdir, or `output` can't be written.
  """
  run = workdir_lib.read(workdir)
  path = epath.Path(output) if output else run.path / 'report.html'
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('vit22b_jax.report', 'template'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {
    'place': workdir_lib.place,
    'details': workdir_lib.details,
  }
  page = environment.get_template('page.html')
  html = page.render(_content(run), plotly=_plotly())
  try:
    _write_whole(path, html)
  except OSError as error:
    raise errors.UserError(
      f'Could not write the report {path}: {error}. Free some space or choose'
      ' another place.'
    ) from error
  return path


def _write_whole(path: epath.Path, text: str) -> None:
  """Writes all of a file, or leaves the one that is there as it is."""
  new = path.with_name(f'{path.name}.new')
  try:
    new.write_text(text)
    new.replace(path)
  except OSError:
    new.unlink(missing_ok=True)
    raise


def _content(run: workdir_lib.Run) -> dict[str, Any]:
  """What the template shows; empty parts stand for what wasn't recorded."""
  predictions = run.predictions
  names = [str(name) for name in predictions.get('class_names', ())]
  counts = predictions.get('confusion')
  drawn = counts is not None and len(names) <= maps.MATRIX_CLASSES
  return {
    'name': run.name,
    'summary': story.summary(run),
    'verdicts': story.verdicts(run),
    'facts': story.facts(run),
    'curves': charts.learning_curves(run),
    'stability': charts.stability(run),
    'cap': charts.CAP,
    'events': run.events[:_EVENTS],
    'num_events': len(run.events),
    'layers': maps.layers(run),
    'samples': _samples(predictions, names),
    'confusion': maps.confusion(counts, names) if drawn else None,
    'classes': len(names),
    'confused': [] if counts is None else confused(counts, names),
    'config': _flat(run.config),
    'versions': _flat(run.versions),
  }


def _plotly() -> str:
  """Plotly's source, gzip and base64."""
  source = offline.get_plotlyjs().encode()
  return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _samples(
  predictions: dict[str, np.ndarray], names: list[str]
) -> list[dict[str, Any]]:
  """Sample predictions, wrong ones first, each group by confidence."""
  if 'images' not in predictions:
    return []
  probabilities = predictions['probabilities']
  chosen, labels = probabilities.argmax(1), predictions['labels']
  order = np.lexsort((-probabilities.max(1), chosen == labels))
  return [
    {
      'source': png(predictions['images'][i]),
      'true': names[labels[i]],
      'predicted': names[chosen[i]],
      'probability': float(probabilities[i, chosen[i]]),
      'probability_true': float(probabilities[i, labels[i]]),
      'right': bool(chosen[i] == labels[i]),
    }
    for i in order
  ]


def png(image: Int[np.ndarray, 'H W 3']) -> str:
  """A uint8 image as a data URL, at most _SAMPLE_PIXELS a side."""
  picture, stream = Image.fromarray(image), io.BytesIO()
  picture.thumbnail((_SAMPLE_PIXELS, _SAMPLE_PIXELS))
  picture.save(stream, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'


def confused(
  counts: Int[np.ndarray, 'C C'], names: list[str]
) -> list[dict[str, Any]]:
  """The pairs of classes confused most often, for classes of any number."""
  wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
  order = np.argsort(wrong, axis=None, kind='stable')[::-1][:_CONFUSIONS]
  pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
  totals: Float[np.ndarray, 'C'] = counts.sum(1)
  return [
    {
      'true': names[i],
      'predicted': names[j],
      'count': int(counts[i, j]),
      'part': story.percent(counts[i, j] / totals[i]),
    }
    for i, j in pairs
    if wrong[i, j]
  ]


def _flat(tree: dict[str, Any], prefix: str = '') -> dict[str, str]:
  """Nested keys joined by dots, values as text."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f'{prefix}{key}.')
    elif isinstance(value, list):
      flat[prefix + key] = ', '.join(map(str, value))
    else:
      flat[prefix + key] = str(value)
  return flat
