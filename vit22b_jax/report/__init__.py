"""Turns workdirs into self-contained HTML pages, PNG plots, Markdown tables.

  report.write('runs/cifar100_vit22b_s')            # .../report.html
  report.compare(['runs/a', 'runs/b_*'], 'comparison.html')
  report.plots('runs/cifar100_vit22b_s', 'docs')    # docs/stability.png, ...
  print(report.markdown_table(['runs/a', 'runs/b']))

Reads only the files of a workdir, so it works on a run that is still going, has
crashed, or lies in a bucket; parts that are missing are left out and said so.
Never imports jax.
"""

from etils import epath

from vit22b_jax.report.comparison import compare
from vit22b_jax.report.page import write
from vit22b_jax.report.task_pages import markdown_table

__all__ = ['compare', 'markdown_table', 'plots', 'write']


def plots(workdir: epath.PathLike, folder: epath.PathLike) -> list[epath.Path]:
  """Writes a run's curves as PNG files: see `figures.plots`."""
  # Matplotlib takes a moment to import, and training only needs the page.
  from vit22b_jax.report import figures

  return figures.plots(workdir, folder)
