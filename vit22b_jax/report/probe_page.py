"""Writes the page of a probe: advice, rates by switch, curves of the trials.

probe_page.write('runs/x')  # probe.json -> probe.html
"""

from typing import Any

import numpy as np
from etils import epath

from vit22b_jax import errors
from vit22b_jax.report import charts, page, templates, traces
from vit22b_jax.runtime import runs

TITLES = {
  'switch': 'switch',
  'stable': 'stable at',
  'explodes': 'explodes at',
  'times': 'times',
  'first': 'first to move',
}
_CURVES = {
  'max_logit': 'Largest logit, unchanged',
  'max_abs_grad': 'Largest gradient entry, unchanged',
}


def write(workdir: epath.PathLike) -> epath.Path:
  """Writes probe.html beside a probe.json, and returns its path.

  Raises:
    UserError: there is no probe.json, or the page can't be written.
  """
  folder = epath.Path(workdir)
  record = runs.read_probe(folder)
  if record is None:
    raise errors.UserError(f'{folder} has no probe.json: run --mode=probe.')
  path = folder / 'probe.html'
  template = templates.environment().get_template('probe.html')
  html = template.render(
    name=folder.name,
    summary=record['advice'],
    titles=TITLES,
    rows=rows(record),
    curves={title: _curves(record, key) for key, title in _CURVES.items()},
    plotly=page.plotly(),
  )
  page.save(path, html)
  return path


def rows(record: dict[str, Any]) -> list[dict[str, str]]:
  """Returns a line for each program that was searched.

  Args:
    record: the content of probe.json.

  Returns:
    By line: `switch stable explodes times first`; the last names what moved
    first in the trial at the lowest exploding rate.
  """
  found = record['switches']
  base = found.get('', {}).get('explodes_at')
  lines = []
  for switch, bounds in found.items():
    low, high = bounds['stable_at'], bounds['explodes_at']
    trial = next(
      (
        t
        for t in record['trials'].values()
        if t['switch'] == switch and t['rate'] == high
      ),
      {},
    )
    moved = [trial.get('moved_first'), trial.get('layer')]
    lines.append(
      {
        'switch': f'{switch}={bounds["value"]!r}' if switch else 'unchanged',
        'stable': f'{low:.3g}' if low else '-',
        'explodes': f'{high:.3g}' if high else '-',
        'times': f'{high / base:.3g}' if high and base else '-',
        'first': ', '.join(filter(None, moved)) or '-',
      }
    )
  return lines


def _curves(record: dict[str, Any], key: str) -> charts.Figure:
  """Draws a signal of the unchanged config's trials by step, a line a rate."""
  trials = sorted(
    (t for t in record['trials'].values() if not t['switch'] and t[key]),
    key=lambda trial: trial['rate'],
  )
  drawn = []
  for number, trial in enumerate(trials):
    values = np.asarray(trial[key], float)
    color, dash = charts.look(number)
    drawn.append(
      traces.line(
        f'{trial["rate"]:.3g}',
        np.arange(1, len(values) + 1),
        values,
        color,
        dash=dash,
        capped=True,
      )
    )
  return charts.figure(drawn, {'type': 'log', 'tickformat': '~g'}, None)
