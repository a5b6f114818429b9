"""Results of several runs as a Markdown table, for README files."""

from collections.abc import Iterable

from etils import epath

from vit22b_jax.report import workdir as workdir_lib

_HEADER = (
  '| run | data | block | variant | steps | top-1 | top-5 | AUROC | loss |\n'
  '|---|---|---|---|--:|--:|--:|--:|--:|'
)


def markdown_table(workdirs: Iterable[epath.PathLike]) -> str:
  """One line a workdir, from its config.json and eval.json.

  Runs without a final evaluation keep their line, with dashes for numbers.

  Raises:
    errors.UserError: a folder is not a workdir.
  """
  return '\n'.join([_HEADER, *(_line(path) for path in workdirs)]) + '\n'


def _line(path: epath.PathLike) -> str:
  run = workdir_lib.read(path)
  model = run.config['model']
  scores = [
    f'{run.evaluation[key]:.3f}' if key in run.evaluation else '–'
    for key in ('top1', 'top5', 'auroc', 'loss')
  ]
  cells = [
    run.name,
    run.config['data']['name'],
    model['block'],
    model['variant'],
    f'{run.last_step:,}',
    *scores,
  ]
  return f'| {" | ".join(cells)} |'
