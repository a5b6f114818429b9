"""Writes the page of a run: `write(workdir)`, one file that needs no network.

The page carries Plotly compressed (2 MB in place of 5), and its content
security policy forbids every request: it works from disk, mail and buckets.
"""

import base64
import contextlib
import functools
import gzip
import re
from typing import Any

import jinja2
import markupsafe
from absl import logging
from etils import epath

from vit22b_jax import errors, rules
from vit22b_jax.report import charts, probe_page, summary, task_pages, traces
from vit22b_jax.runtime import runs


def write(
  workdir: epath.PathLike, output: epath.PathLike | None = None
) -> epath.Path:
  """Writes the report of a run, finished or not, and returns its path.

  That is `output`, or report.html in the workdir. A damaged file is left out,
  and named on the page.

  Raises:
    errors.UserError: `workdir` is not a workdir, or `output` can't be written.
  """
  run = runs.read(workdir, lenient=True)
  for message in run.damaged:
    logging.warning('Left out of the report: %s', message)
  path = epath.Path(output) if output else run.path / 'report.html'
  save(path, render(f'{run.config["task"]}.html', **_content(run)))
  return path


def write_probe(folder: epath.Path, record: dict[str, Any]) -> epath.Path:
  """Writes probe.html of the content of a probe.json, and returns its path.

  Raises:
    errors.UserError: the page can't be written.
  """
  path, name = folder / 'probe.html', errors.printable(folder.name)
  content = {'name': name, 'summary': '', 'probe': probe_page.content(record)}
  save(path, render('probe.html', **content))
  return path


def render(template: str, **content: Any) -> str:
  """Returns a page of a template that extends base.html."""
  return environment().get_template(template).render(content, plotly=_plotly())


def save(path: epath.Path, html: str) -> None:
  """Writes a page whole.

  Raises:
    errors.UserError: it can't be written; a page that was there stays.
  """
  new = path.with_name(f'{path.name}.new')
  try:
    new.write_bytes(html.encode(errors='backslashreplace'))
    new.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      new.unlink(missing_ok=True)
    raise errors.UserError(
      f'Could not write the report {path}: {error}. Free some space or choose'
      ' another place.'
    ) from error


def verdicts(run: runs.Run) -> list[summary.Verdict]:
  """Answers whether it learned, what exploded first, whether it is done."""
  pages = task_pages.for_task(run)
  stable = summary.stability(run, pages.WORDS)
  return [pages.learning(run), stable, summary.progress(run)]


@functools.cache
def environment() -> jinja2.Environment:
  """Loads files of `template/`, safe for any text; missing names are errors."""
  found = jinja2.Environment(
    loader=jinja2.PackageLoader('vit22b_jax.report', 'template'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  found.globals['cap'] = traces.CAP
  found.filters |= {
    'place': summary.place,
    'details': summary.details,
    'breakable': _breakable,
    'look': charts.look,
  }
  return found


@functools.cache
def _plotly() -> str:
  """Returns Plotly's source, gzip and base64."""
  from plotly import offline  # a report alone needs it

  source = offline.get_plotlyjs().encode()
  return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _content(run: runs.Run) -> dict[str, Any]:
  """Returns the template's values; empty parts stand for missing records."""
  pages = task_pages.for_task(run)
  return {
    'run': run,
    'pages': pages,
    'name': run.name,
    'summary': pages.describe(run),
    'verdicts': verdicts(run),
    'facts': [*pages.facts(run), *summary.facts(run, pages.WORDS)],
    'curves': charts.learning_curves(run, pages.curves(run)),
    'stability': charts.stability(run, pages.WORDS.largest),
    'probe': probe_page.content(run.probe) if run.probe else None,
    'config': _texts(run.choices),
    'versions': _texts(rules.flatten(run.versions)),
    **pages.content(run),
  }


def _texts(choices: dict[str, Any]) -> dict[str, str]:
  """Returns values as text, without those that were left to a preset."""
  return {k: summary.text(v) for k, v in choices.items() if v is not None}


def _breakable(name: str) -> markupsafe.Markup:
  """Returns a name that may be broken into lines behind its signs."""
  escaped = str(markupsafe.escape(name))
  return markupsafe.Markup(re.sub(r'([_/+-])', r'\1<wbr>', escaped))
