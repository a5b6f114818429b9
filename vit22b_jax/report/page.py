"""Writes the page of a run, or of a probe: one file that needs no network.

A page carries Plotly compressed (2 MB in place of 5), and its content
security policy forbids every request: it works from disk, mail and buckets.
"""

import base64
import functools
import gzip
import re
from typing import Any

import jinja2
import markupsafe
import numpy as np
from absl import logging
from etils import epath

from vit22b_jax import errors, rules
from vit22b_jax.data import files
from vit22b_jax.report import charts, summary, task_pages, traces
from vit22b_jax.runtime import runs

PROBE_TITLES = (
  *('switch', 'stable at', 'explodes at', 'times', 'first to move'),
)
_RATES = 6  # lines of a probe's chart, the highest


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
  content = {'name': name, 'summary': '', 'probe': _probe(record)}
  save(path, render('probe.html', **content))
  return path


def probe_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
  """Returns a line for each program that a probe.json says was searched.

  Each has the columns of PROBE_TITLES; the last names what moved first in the
  trial at the lowest exploding rate.
  """
  found = record['switches']
  base = found.get('', {}).get('explodes_at')
  trials = {(t['switch'], t['rate']): t for t in record['trials'].values()}
  lines = []
  for switch, bounds in found.items():
    low, high = bounds['stable_at'], bounds['explodes_at']
    trial = trials.get((switch, high), {})
    moved = [trial.get('moved_first'), trial.get('layer')]
    shown = (
      f'{switch}={bounds["value"]!r}' if switch else 'unchanged',
      f'{low:.3g}' if low else '-',
      f'{high:.3g}' if high else '-',
      f'{high / base:.3g}' if high and base else '-',
      ', '.join(filter(None, moved)) or '-',
    )
    lines.append(shown)
  return lines


def render(template: str, **content: Any) -> str:
  """Returns a page of a template that extends base.html."""
  return environment().get_template(template).render(content, plotly=_plotly())


def save(path: epath.Path, html: str) -> None:
  """Writes a page whole.

  Raises:
    errors.UserError: it can't be written; a page that was there stays.
  """
  try:
    files.write_whole(path, html.encode(errors='backslashreplace'))
  except OSError as error:
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
    'probe': _probe(run.probe) if run.probe else None,
    'config': _texts(run.choices),
    'versions': _texts(rules.flatten(run.versions)),
    **pages.content(run),
  }


def _probe(record: dict[str, Any]) -> dict[str, Any]:
  """Returns the values of template/probe_section.html for a probe.json."""
  titles = charts.judged('Largest logit')
  curves = {title: _probe_curves(record, key) for key, title in titles.items()}
  return {
    'advice': record['advice'],
    'titles': PROBE_TITLES,
    'rows': probe_rows(record),
    'curves': {title: figure for title, figure in curves.items() if figure},
  }


def _probe_curves(record: dict[str, Any], key: str) -> charts.Figure | None:
  """Draws a signal of the unchanged config's trials by step, a line a rate."""
  trials = [t for t in record['trials'].values() if not t['switch'] and t[key]]
  drawn = []
  trials = sorted(trials, key=lambda t: t['rate'])[-_RATES:]
  for number, trial in enumerate(trials):
    values, name = np.asarray(trial[key], float), f'{trial["rate"]:.3g}'
    series = np.arange(1, len(values) + 1), values
    color, dash = charts.look(number)
    drawn.append(traces.line(name, series, color, dash=dash, capped=True))
  axis = {'type': 'log', 'tickformat': '~g'}
  return charts.figure(drawn, axis) if drawn else None


def _texts(choices: dict[str, Any]) -> dict[str, str]:
  """Returns values as text, without those that were left to a preset."""
  return {k: summary.text(v) for k, v in choices.items() if v is not None}


def _breakable(name: str) -> markupsafe.Markup:
  """Returns a name that may be broken into lines behind its signs."""
  escaped = str(markupsafe.escape(name))
  return markupsafe.Markup(re.sub(r'([_/+-])', r'\1<wbr>', escaped))
