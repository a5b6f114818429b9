"""Lists every experiment: its question, how far it is, its cost and answer.

python -m experiments.catalogue
"""

import pathlib

from experiments import kept, runner, summary
from experiments.figure1_stability import run as figure1
from experiments.figure2_classification import run as figure2
from experiments.figure5_samples import run as figure5
from experiments.spatial_parts import run as spatial_parts
from experiments.table1_parameters import run as table1
from experiments.table2_translation import run as table2
from vit22b_jax.runtime import runs

FOLDER = pathlib.Path(__file__).parent
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


def answering(experiment: runner.Experiment) -> runner.Rows:
  """Returns the rows, by name, of those scales that answer the question."""
  found = {}
  for scale in summary.SCALES.get(experiment.name, ('cpu',)):
    found |= runner.read(runner.results_file(experiment.results, scale))
  return found


def single_runs() -> list[str]:
  """Returns a line for each run whose files are kept: cost, result."""
  lines = []
  for folder, config, data in summary.RECIPES:
    run = FOLDER / folder
    hours = summary.minutes(run) * runs.read(run).versions['cpus'] / 60
    result = summary.result(run)
    lines.append(f'{config}, {data}: {hours:.1f} core hours, {result}')
  for folder, config, data in kept.BEGUN:
    lines.append(f'{config}, {data}: {kept.cost([FOLDER / folder])}')
  return lines


def _runs(number: int) -> str:
  return f'{number} run{"" if number == 1 else "s"}'


def main() -> None:
  """Prints every experiment with question, status, command and answer."""
  for experiment in EXPERIMENTS:
    print(f'{experiment.name}: {experiment.question}')
    for scale in experiment.scales:
      print(f'  {scale + ":":6}{status(experiment, scale)}')
      print(
        f'        python -m experiments.{experiment.name}.run --scale={scale}'
      )
    if experiment.name in summary.ANSWERS:
      _, answer = summary.ANSWERS[experiment.name]
      print(f'  {answer(answering(experiment))}')
  print('Single runs (python main.py --config=configs/CONFIG.py):')
  print(*(f'  {line}' for line in single_runs()), sep='\n')
  print('Speed (python -m experiments.throughput.training_step):')
  print(f'  {summary.speed(FOLDER / "throughput")}')


if __name__ == '__main__':
  main()
