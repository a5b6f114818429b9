"""Lists the paper's tables and figures, a question of ours, how far each is.

python -m experiments.catalogue
"""

from experiments import runner
from experiments.figure1_stability import run as figure1
from experiments.figure2_classification import run as figure2
from experiments.figure5_samples import run as figure5
from experiments.spatial_parts import run as spatial_parts
from experiments.table1_parameters import run as table1
from experiments.table2_translation import run as table2

EXPERIMENTS = tuple(
  module.EXPERIMENT
  for module in (table1, figure1, figure2, table2, figure5, spatial_parts)
)


def status(experiment: runner.Experiment, scale: str) -> str:
  """Returns how many of the known runs have results, and their cost."""
  rows = runner.read(runner.results_file(experiment.results, scale))
  known = len(experiment.cells(scale, rows))
  done = known - len(experiment.missing(scale, rows))
  if not done:
    return f'no results, {_runs(known)} to do'
  seconds = sum(
    row.get('cpu_seconds', row['seconds'] * row['cores'])
    for row in rows.values()
  )
  cost = f'{seconds / 3600:.1f} core hours' if scale != 'full' else ''
  left = '' if done == known else f', {known - done} to do'
  return ', '.join(filter(None, (f'{_runs(done)} done{left}', cost)))


def _runs(number: int) -> str:
  return f'{number} run{"" if number == 1 else "s"}'


def main() -> None:
  """Prints every experiment with its question, status and command."""
  for experiment in EXPERIMENTS:
    print(f'{experiment.name}: {experiment.question}')
    for scale in experiment.scales:
      print(f'  {scale + ":":6}{status(experiment, scale)}')
      print(
        f'        python -m experiments.{experiment.name}.run --scale={scale}'
      )


if __name__ == '__main__':
  main()
