"""Writes all tables and pictures of results from the files of experiments/.

python -m experiments.results
"""

import json
import pathlib

from experiments import catalogue, documents, kept, runner, summary
from vit22b_jax import report

ROOT = pathlib.Path(__file__).parent.parent
# Where the README's tables begin.
_RECIPES = '<!-- recipes: python -m experiments.results -->'
_RESULTS = '<!-- results: python -m experiments.results -->'
_QK_NORM = '<!-- qk-norm -->'
_ANSWER = '<!-- answer -->'  # where an experiment's page tells its numbers


# Scales whose results pages show.
SCALES = ('cpu', 'real')
# Tables that commands wrote: (file under experiments/, what stands above it).
BLOCKINESS = (
  'blockiness/results.md',
  'How much patches show in translations by equally trained generators: '
  'differences of pixels across patch borders over those inside patches '
  '(real images: about 1), and the share of the variance inside patches '
  'that all patches of an image have in common (real images: about 0; '
  '`experiments/blockiness`):',
)
TABLES = (
  (
    'throughput/results.md',
    'One training step (forward, backward, clipping, AdamW; batch 64, 32 px, '
    'patch 4, float32) beside its peer, alternating in one run; the ratio is '
    "the peer's time over ours, so above 1 we are faster. It differs between "
    'processors. PyTorch runs eagerly where "compiled" is not said '
    '(`experiments/throughput`):',
  ),
  (
    'throughput/translation.md',
    'One CycleGAN step (both updates, pools, 64 px, float32) beside the '
    'same step in PyTorch, alternating:',
  ),
  (
    'throughput/inception.md',
    "Inception's features of 16 images of 256 px, resizing included, beside "
    "torch-fidelity's with the same weights:",
  ),
  (
    'throughput/overhead.md',
    'What a run costs beside its arithmetic (batch 64; 0.99 means 1 % '
    'slower than what it stands beside; the median over pairs of neighboring '
    'steps, not the quotient of the medians):',
  ),
)


def render(readme: str) -> str:
  """Returns the README's text with its tables of recipes and results anew."""
  folder = ROOT / 'experiments'
  rows = {e.name: catalogue.answering(e) for e in catalogue.EXPERIMENTS}
  readme = documents.fill(readme, summary.recipes(folder), _RECIPES)
  return documents.fill(readme, summary.answers(rows, folder), _RESULTS)


def _finished(task: str) -> list[pathlib.Path]:
  """Returns the folders of the kept runs of a task."""
  found = []
  for path in sorted((ROOT / 'experiments').rglob('eval.json')):
    config = json.loads(path.with_name('config.json').read_text())
    if config['task'] == task:
      found.append(path.parent)
  return found


def runs() -> list[str]:
  """Returns single runs whose files are kept."""
  return [
    'Runs on two CPU cores, test part:',
    report.markdown_table(_finished('classification')).strip(),
    'Translations; beside each distance that of a generator which leaves '
    'images as they are, and of the untrained one. Uncalibrated distances come '
    'from weights drawn at random: they compare with those of the same weights '
    'alone, and may not match human preference.',
    report.markdown_table(_finished('translation')).strip(),
    *_written(BLOCKINESS),
  ]


def pages() -> dict[pathlib.Path, str]:
  """Returns the pages of experiments/ with their results in their place."""
  found = {}
  for experiment in catalogue.EXPERIMENTS:
    path = experiment.folder / 'README.md'
    found[path] = documents.fill(path.read_text(), _results(experiment))
    if experiment.name in summary.ANSWERS:
      _, answer = summary.ANSWERS[experiment.name]
      text = answer(catalogue.answering(experiment))
      found[path] = documents.fill(found[path], text, _ANSWER)
  found |= kept.pages(ROOT / 'experiments')
  folder = ROOT / 'experiments' / 'throughput'
  path, speed = folder / 'README.md', _written(*TABLES)
  page = documents.fill(path.read_text(), '\n\n'.join(speed))
  page = documents.fill(page, summary.qk_norm(folder), _QK_NORM)
  found[path] = documents.fill(page, summary.speed(folder), _ANSWER)
  path = ROOT / 'experiments' / 'README.md'
  text = '\n\n'.join([*runs(), *speed])
  found[path] = documents.fill(path.read_text(), text)
  return found


def _results(experiment: runner.Experiment) -> str:
  """Returns what was written of the rows, first of scales that answer."""
  answering = summary.SCALES.get(experiment.name, ())
  parts = {}
  for scale in dict.fromkeys([*answering, *SCALES]):
    path = runner.results_file(experiment.folder, scale).with_suffix('.md')
    if scale in experiment.scales and path.exists():
      parts[scale] = path.read_text().strip()
  if len(parts) > 1:
    parts = {s: f'**Scale `{s}`**\n\n{text}' for s, text in parts.items()}
  return '\n\n'.join(parts.values())


def _written(*tables: tuple[str, str]) -> list[str]:
  """Returns the tables that there are, each after the words above it."""
  found = []
  for file, words in tables:
    path = ROOT / 'experiments' / file
    if path.exists():
      found += [words, path.read_text().strip()]
  return found


def main() -> None:
  """Draws and writes everything anew."""
  for experiment in catalogue.EXPERIMENTS:
    for scale in SCALES:
      source = runner.results_file(experiment.results, scale)
      if scale in experiment.scales and source.exists():
        rows = runner.read(source)
        experiment.render(experiment.results, experiment.folder, scale, rows)
  for path, text in pages().items():
    path.write_text(text)
  readme = ROOT / 'README.md'
  readme.write_text(render(readme.read_text()))


if __name__ == '__main__':
  main()
