"""What the report tells of each task: one module a task, all alike.

kind = kinds.of(run)
kind.TEMPLATE        # its page, which extends template/page.html
kind.WORDS           # what it calls the things that every run records
kind.PLOTTED         # titles of the curves that go into curves.png
kind.TABLE           # columns of its Markdown table: of text, of numbers
kind.HEADLINE        # the measure that decides which of several runs is best
kind.VALIDATION      # the number of metrics.jsonl that stands beside it
kind.summary(run)    # what was trained on what, in one line
kind.learning(run)   # the verdict: did it learn?
kind.facts(run)      # headline numbers of the final evaluation
kind.curves(run)     # lines over steps by title of their chart
kind.content(run)    # what its template shows beside the parts of every run
kind.rows(run)       # its lines of the Markdown table
kind.measures(run)   # what a comparison tells of the final evaluation
kind.yardstick(run)  # what it was measured with; others' numbers don't compare
"""

import types
from collections.abc import Iterable

from vit22b_jax import errors
from vit22b_jax.report import classification, translation, workdir

_KINDS = {'classification': classification, 'translation': translation}


def of(run: workdir.Run) -> types.ModuleType:
  """The module that tells of runs of this task.

  Raises:
    errors.UserError: there is none.
  """
  task = run.config['task']
  if task not in _KINDS:
    raise errors.UserError(
      f'{run.path} is of the task {task!r}, of which no report is written:'
      f' there are {" and ".join(_KINDS)}. Leave it out.'
    )
  return _KINDS[task]


def agreed(titles: Iterable[str], key: str) -> str:
  """What several runs call a thing.

  Where they disagree, as on the names of two domains, what they say before a
  colon and the end of the key: 'FID: a2b' of 'FID: apple → orange' and
  'fid_a2b'. Without that, the key.
  """
  names = set(titles)
  if len(names) == 1:
    return names.pop()
  heads = {name.partition(': ')[0] for name in names}
  return f'{heads.pop()}: {key.rpartition("_")[2]}' if len(heads) == 1 else key
