"""The page: `write(workdir) -> report.html`, one file that needs no network.

The page carries Plotly compressed (2 MB in place of 5) and forbids itself every
request by its content security policy, so it works from disk, mail and buckets.
"""

import base64
import functools
import gzip
from typing import Any

from etils import epath
from plotly import offline

from vit22b_jax import errors
from vit22b_jax.report import charts, kinds, story, templates
from vit22b_jax.report import workdir as workdir_lib

_EVENTS = 50  # rows of the table of events


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
  page = templates.environment().get_template(kinds.of(run).TEMPLATE)
  save(path, page.render(_content(run), plotly=plotly()))
  return path


def save(path: epath.Path, html: str) -> None:
  """Writes a page.

  Raises:
    errors.UserError: it can't be written; a page that was there stays.
  """
  try:
    _write_whole(path, html)
  except OSError as error:
    raise errors.UserError(
      f'Could not write the report {path}: {error}. Free some space or choose'
      ' another place.'
    ) from error


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
  kind = kinds.of(run)
  return {
    'name': run.name,
    'summary': kind.summary(run),
    'verdicts': verdicts(run),
    'facts': [*kind.facts(run), *story.facts(run, kind.WORDS)],
    'curves': charts.learning_curves(run, kind.curves(run)),
    'stability': charts.stability(run, kind.WORDS.largest),
    'largest': kind.WORDS.largest.lower(),
    'cap': charts.CAP,
    'events': run.events[:_EVENTS],
    'num_events': len(run.events),
    'config': _flat(run.config),
    'versions': _flat(run.versions),
    **kind.content(run),
  }


def verdicts(run: workdir_lib.Run) -> list[story.Verdict]:
  """Did it learn, did anything explode and where first, is it done?"""
  kind = kinds.of(run)
  return [
    kind.learning(run),
    story.stability(run, kind.WORDS),
    story.progress(run),
  ]


@functools.cache
def plotly() -> str:
  """Plotly's source, gzip and base64."""
  source = offline.get_plotlyjs().encode()
  return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _flat(tree: dict[str, Any]) -> dict[str, str]:
  """Nested keys joined by dots, values as text."""
  flat = workdir_lib.flatten(tree)
  return {key: workdir_lib.text(value) for key, value in flat.items()}
