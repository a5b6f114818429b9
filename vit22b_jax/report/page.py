"""Writes the page of a run: `write(workdir)`, one file that needs no network.

The page carries Plotly compressed (2 MB in place of 5), and its content
security policy forbids every request: it works from disk, mail and buckets.
"""

import base64
import functools
import gzip
from typing import Any

from absl import logging
from etils import epath
from plotly import offline

from vit22b_jax import errors, rules
from vit22b_jax.report import charts, summary, task_pages, templates, traces
from vit22b_jax.runtime import runs

_EVENTS = 50  # rows of the table of events


def write(
  workdir: epath.PathLike, output: epath.PathLike | None = None
) -> epath.Path:
  """Writes the report of a run; a damaged file is left out and named on it.

  Args:
    workdir: of a run, finished or not.
    output: where the page goes; None means report.html in the workdir.

  Returns:
    The path of the page.

  Raises:
    errors.UserError: `workdir` is not a workdir, or `output` can't be written.
  """
  run = runs.read(workdir, lenient=True)
  for message in run.damaged:
    logging.warning('Left out of the report: %s', message)
  path = epath.Path(output) if output else run.path / 'report.html'
  template = task_pages.for_task(run).TEMPLATE
  page = templates.environment().get_template(template)
  save(path, page.render(_content(run), plotly=plotly()))
  return path


def save(path: epath.Path, html: str) -> None:
  """Writes a page whole.

  Raises:
    errors.UserError: it can't be written; a page that was there stays.
  """
  new = path.with_name(f'{path.name}.new')
  try:
    try:
      new.write_bytes(runs.printable(html).encode())
      new.replace(path)
    except OSError:
      new.unlink(missing_ok=True)
      raise
  except OSError as error:
    raise errors.UserError(
      f'Could not write the report {path}: {error}. Free some space or choose'
      ' another place.'
    ) from error


def _content(run: runs.Run) -> dict[str, Any]:
  """Returns the template's values; empty parts stand for missing records."""
  pages = task_pages.for_task(run)
  return {
    'name': run.name,
    'summary': pages.describe(run),
    'damaged': run.damaged,
    'verdicts': verdicts(run),
    'facts': [*pages.facts(run), *summary.facts(run, pages.WORDS)],
    'curves': charts.learning_curves(run, pages.curves(run)),
    'stability': charts.stability(run, pages.WORDS.largest),
    'largest': pages.WORDS.largest.lower(),
    'cap': traces.CAP,
    'events': run.events[:_EVENTS],
    'num_events': len(run.events),
    'command': run.versions.get('command'),
    'config': _texts(run.choices),
    'versions': _texts(rules.flatten(run.versions)),
    **pages.content(run),
  }


def verdicts(run: runs.Run) -> list[summary.Verdict]:
  """Answers whether it learned, what exploded first, whether it is done."""
  pages = task_pages.for_task(run)
  return [
    pages.learning(run),
    summary.stability(run, pages.WORDS),
    summary.progress(run),
  ]


@functools.cache
def plotly() -> str:
  """Returns Plotly's source, gzip and base64."""
  source = offline.get_plotlyjs().encode()
  return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _texts(choices: dict[str, Any]) -> dict[str, str]:
  """Returns values as text, without those that were left to a preset."""
  return {k: summary.text(v) for k, v in choices.items() if v is not None}
