"""Writes results of several runs as Markdown tables, for README files."""

from collections.abc import Iterable

from etils import epath

from vit22b_jax.report import task_pages
from vit22b_jax.runtime import runs


def markdown_table(workdirs: Iterable[epath.PathLike]) -> str:
  """Returns a table for each task among the runs.

  Runs without a final evaluation keep their lines, with dashes for numbers.

  Raises:
    errors.UserError: a folder is not a workdir.
  """
  tables: dict[tuple, list[list[str]]] = {}
  for path in workdirs:
    run = runs.read(path)
    pages = task_pages.for_task(run)
    tables.setdefault(pages.TABLE, []).extend(pages.rows(run))
  return '\n'.join(_table(*columns, rows) for columns, rows in tables.items())


def _table(
  texts: tuple[str, ...], numbers: tuple[str, ...], rows: list[list[str]]
) -> str:
  rule = f'|{"---|" * len(texts)}{"--:|" * len(numbers)}'
  lines = [_line([*texts, *numbers]), rule, *map(_line, rows)]
  return '\n'.join(lines) + '\n'


def _line(cells: list[str]) -> str:
  return f'| {" | ".join(cells)} |'
