"""Writes tables, plots and blocks of a README for readers."""

import hashlib
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import figure
from PIL import Image

# Colors that stay apart for the color-blind (Okabe and Ito, 2008,
# https://jfly.uni-koeln.de/color/).
COLORS = (
  *('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9'),
  '#000000',
)
_START = '<!-- results -->'
_END = '<!-- /results -->'
_SOURCE = 'Source'  # a text field of PNG files


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Returns a Markdown table; '#' begins the name of a column of numbers."""
  names = [name.removeprefix('#') for name in columns]
  rules = ['--:' if name.startswith('#') else '---' for name in columns]
  lines = [names, *([str(cell) for cell in row] for row in rows)]
  text = [f'| {" | ".join(cells)} |' for cells in lines]
  return '\n'.join([text[0], f'|{"|".join(rules)}|', *text[1:]])


def write(
  folder: pathlib.Path, results: pathlib.Path, parts: Iterable[str]
) -> None:
  """Writes results.md of results.json, results_full.md of results_full.json."""
  text = '\n\n'.join(part for part in parts if part)
  (folder / f'{results.stem}.md').write_text(f'{text}\n')


def fill(page: str, text: str, start: str = _START) -> str:
  """Returns the page with `text` as its block of results after `start`."""
  pattern = re.compile(f'{re.escape(start)}.*?{_END}', re.DOTALL)
  return pattern.sub(lambda _: f'{start}\n\n{text}\n\n{_END}', page)


def panels(
  width: float, height: float, titles: Sequence[str], label: str
) -> tuple[figure.Figure, list[Any]]:
  """Returns a figure of axes side by side, with titles and one label."""
  picture = figure.Figure(figsize=(width, height), layout='constrained')
  axes = picture.subplots(1, len(titles), squeeze=False)[0]
  for panel, title in zip(axes, titles, strict=True):
    panel.set_title(title, loc='left', fontsize=11)
    panel.set_xlabel(label)
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(color='#e3e5e8', linewidth=0.6)
    panel.set_axisbelow(True)
  return picture, list(axes)


def save(
  picture: figure.Figure,
  folder: pathlib.Path,
  name: str,
  words: str,
  results: pathlib.Path,
) -> str:
  """Writes a PNG that tells which results it shows, see `is_of`.

  NAME.png of results.json, NAME_full.png of results_full.json. Returns the
  Markdown that shows it, with words for those who don't see it.
  """
  file = f'{name}{results.stem.removeprefix("results")}.png'
  picture.savefig(folder / file, dpi=150, metadata={_SOURCE: _digest(results)})
  return f'![{words}]({file})'


def is_of(path: pathlib.Path, results: pathlib.Path) -> bool:
  """Returns whether a PNG was drawn from the results as they are now."""
  with Image.open(path) as image:
    return image.info.get(_SOURCE) == _digest(results)


def _digest(results: pathlib.Path) -> str:
  return hashlib.sha256(results.read_bytes()).hexdigest()
