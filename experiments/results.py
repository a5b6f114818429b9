"""Writes the README's result tables and pictures from files of experiments/.

python -m experiments.results
"""

import json
import pathlib
import re

from vit22b_jax import report

ROOT = pathlib.Path(__file__).parent.parent
_START = '<!-- results: python -m experiments.results -->'
_END = '<!-- /results -->'


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
    'slower than what it stands beside):',
  ),
)


def section() -> str:
  """The tables, as Markdown."""
  here = ROOT / 'experiments'
  runs = sorted(path.parent for path in here.rglob('eval.json'))
  classifiers, translations = (
    [run for run in runs if _task(run) == task]
    for task in ('classification', 'translation')
  )
  parts = [
    'Runs on two CPU cores, test part (`experiments/`):',
    report.markdown_table(classifiers).strip(),
  ]
  if translations:
    parts += [
      'Translations on two CPU cores, test part; beside each distance that of '
      'a generator which leaves images as they are, and of the untrained one. '
      'Uncalibrated distances come from weights drawn at random: they rank '
      'generators here, and compare with none elsewhere.',
      report.markdown_table(translations).strip(),
      *map(_picture, translations),
    ]
  parts += _written(BLOCKINESS)
  throughput = here / 'throughput' / 'results.json'
  if throughput.exists():
    parts += [
      'One training step (forward, backward, clipping, AdamW; batch 64, 32 px, '
      'patch 4, float32) beside its peer, alternating in one run; the ratio is '
      "the peer's time over ours, so above 1 we are faster "
      '(`experiments/throughput`):',
      _throughput(json.loads(throughput.read_text())),
    ]
  for table in TABLES:
    parts += _written(table)
  return '\n\n'.join(parts)


def _written(table: tuple[str, str]) -> list[str]:
  """The words above a table and the table; nothing where it isn't written."""
  file, words = table
  path = ROOT / 'experiments' / file
  return [words, path.read_text().strip()] if path.exists() else []


def _task(run: pathlib.Path) -> str:
  return json.loads((run / 'config.json').read_text())['task']


def _picture(run: pathlib.Path) -> str:
  """Samples of a translation: real, translated, and back again."""
  path = (run / 'samples.png').relative_to(ROOT)
  return f'![{run.name}: real, translated, translated back]({path})'


def _throughput(rows: list[dict]) -> str:
  lines = ['| step | ms | peer | ms | ratio |', '|---|--:|---|--:|--:|']
  for row in rows:
    lines.append(
      f'| {row["name"]} | {row["ours_ms"]:.0f} | {row["peer"]} | '
      f'{row["peer_ms"]:.0f} | {row["ratio"]:.2f} |'
    )
  return '\n'.join(lines)


def render(readme: str) -> str:
  """The README's text with its results section made anew."""
  pattern = re.compile(f'{re.escape(_START)}.*?{re.escape(_END)}', re.DOTALL)
  return pattern.sub(lambda _: f'{_START}\n\n{section()}\n\n{_END}', readme)


if __name__ == '__main__':
  path = ROOT / 'README.md'
  path.write_text(render(path.read_text()))
