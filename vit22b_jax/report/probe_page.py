"""Gives a probe its part of a page: advice, rates by switch, curves of trials.

probe_page.content(runs.read('runs/x').probe)
"""

from typing import Any

import numpy as np

from vit22b_jax.report import charts, traces

TITLES = ('switch', 'stable at', 'explodes at', 'times', 'first to move')
_RATES = 6  # lines of a chart, the highest


def content(record: dict[str, Any]) -> dict[str, Any]:
  """Returns the values of template/probe_section.html for a probe.json."""
  titles = charts.judged('Largest logit')
  curves = {title: _curves(record, key) for key, title in titles.items()}
  return {
    'advice': record['advice'],
    'titles': TITLES,
    'rows': rows(record),
    'curves': {title: figure for title, figure in curves.items() if figure},
  }


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
  """Returns a line for each program that a probe.json says was searched.

  Each has the columns of TITLES; the last names what moved first in the trial
  at the lowest exploding rate.
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


def _curves(record: dict[str, Any], key: str) -> charts.Figure | None:
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
