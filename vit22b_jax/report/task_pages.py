"""Finds the module with the pages of a task; all such modules are alike.

The template of a task's page is TASK.html, which extends page.html.

pages = task_pages.for_task(run)
pages.WORDS              # its names of things that every run records
pages.PLOTTED            # titles of the curves that go into curves.png
pages.TABLE              # columns of its Markdown table: of text, of numbers
pages.HEADLINES          # the first that is known decides which run is best
pages.VALIDATIONS        # numbers of metrics.jsonl; one stands beside it
pages.describe(run)      # model and data in one line
pages.learning(run)      # the verdict: did it learn?
pages.facts(run)         # headline numbers of the final evaluation
pages.curves(run)        # lines over steps by title of their chart
pages.content(run)       # what its template shows beside the parts of every run
pages.rows(run)          # its lines of the Markdown table
pages.measures(run)      # numbers of the final evaluation, for comparisons
pages.eval_protocol(run) # what they were measured with; others don't compare
"""

import types
from collections.abc import Iterable

from etils import epath

from vit22b_jax import errors
from vit22b_jax.report import classifier_page, translation_page
from vit22b_jax.runtime import runs

_PAGES = {'classification': classifier_page, 'translation': translation_page}


def for_task(run: runs.Run) -> types.ModuleType:
  """Returns the module with the pages of a run's task.

  Raises:
    errors.UserError: there is none.
  """
  task = run.config['task']
  if task not in _PAGES:
    raise errors.UserError(
      f'{run.path} is of the task {task!r}, of which no report is written:'
      f' there are {" and ".join(_PAGES)}. Leave it out.'
    )
  return _PAGES[task]


def common_title(titles: Iterable[str], key: str) -> str:
  """Returns a title that several runs share.

  Where they disagree, as on the names of two domains, this is their text before
  a colon and the end of the key: 'FID: a2b' of 'FID: apple → orange' and
  'fid_a2b'. Without that, it is the key.
  """
  names = set(titles)
  if len(names) == 1:
    return names.pop()
  heads = {name.partition(': ')[0] for name in names}
  return f'{heads.pop()}: {key.rpartition("_")[2]}' if len(heads) == 1 else key


def markdown_table(workdirs: Iterable[epath.PathLike]) -> str:
  """Returns a table for each task among the runs.

  Runs without a final evaluation keep their lines, with dashes for numbers.

  Raises:
    errors.UserError: a folder is not a workdir.
  """
  tables: dict[tuple, list[str]] = {}
  for path in workdirs:
    run = runs.read(path)
    pages = for_task(run)
    texts, numbers = pages.TABLE
    rule = f'|{"---|" * len(texts)}{"--:|" * len(numbers)}'
    head = [_line([*texts, *numbers]), rule]
    lines = tables.setdefault(pages.TABLE, head)
    lines.extend(_line(cells) for cells in pages.rows(run))
  return '\n'.join('\n'.join([*lines, '']) for lines in tables.values())


def _line(cells: list[str]) -> str:
  return f'| {" | ".join(cells)} |'
