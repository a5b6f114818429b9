"""Writes the pages of single runs, from the files that are kept of them."""

import json
import pathlib
from typing import Any

from experiments import summary
from vit22b_jax import durations, report
from vit22b_jax.runtime import runs as runs_lib

# Pictures that a folder may hold: what they show.
PICTURES = {
  'samples.png': 'Images, their translations, and those translated back',
  'curves.png': 'Losses and accuracies or distances by step',
  'stability.png': 'Largest logits and gradients by step',
  'layers.png': 'Signals of every block by step',
}
ONE_SEED = 'One seed: a difference from another run may be chance.'
UNCALIBRATED = (
  "Inception's weights are drawn at random: distances compare with those of "
  'the same weights alone, and may not match human preference.'
)
LIMITS = {
  'digits': 'Small gray images of one digit each, few of them in the test '
  'part: what a toy set shows, not what the block reaches.',
  'cifar10_cpu': 'The machine did other work as well (`metrics.jsonl` has '
  f'speeds that differ more than fivefold): its time says little. {ONE_SEED}',
  'cifar10_cpu_jpeg': 'The images were re-encoded as JPEG (quality 75). '
  f'{ONE_SEED}',
  'fruit': f'Apples and oranges are drawn, not photographed. {UNCALIBRATED} '
  f'{ONE_SEED}',
  'monet2photo_cpu': 'Paintings and photos are a subset of the public set. '
  f'{UNCALIBRATED} {ONE_SEED}',
  'cifar100_s': 'The first steps only: what the training reaches at its end '
  'is not known. A plan is a prediction, and an upper bound on speed, without '
  'input and evaluation. Other processors [are faster](../throughput).',
}
# The same run on images re-encoded as JPEG, by the page that tells of it.
JPEG = {'cifar10_cpu': 'cifar10_cpu_jpeg'}
# Runs that were begun to see what they cost: folder, config, data.
BEGUN = (('cifar100_s', 'cifar100_vit22b_s', 'CIFAR-100, 32 px'),)


def pages(experiments: pathlib.Path) -> dict[pathlib.Path, str]:
  """Returns the pages of `summary.RECIPES` and of BEGUN; seeds share one."""
  found = {}
  for place, config, data in (*summary.RECIPES, *BEGUN):
    folder = experiments / pathlib.Path(place).parts[0]
    runs = sorted(path.parent for path in folder.rglob('eval.json'))
    text = page(folder.name, runs or [folder], config, data)
    found[folder / 'README.md'] = text
  return found


def page(name: str, runs: list[pathlib.Path], config: str, data: str) -> str:
  """Returns a page: answer, pictures, table, method, limits.

  `runs` are folders of the same run with different seeds, `config` is its file
  in configs/, without its ending.
  """
  seed = ' --config.seed=N' if len(runs) > 1 else ''
  told, results = cost, []
  if (runs[0] / 'eval.json').exists():
    told = answer
    results = ['On the test part:', report.markdown_table(runs).strip()]
  if name in JPEG:
    results.append(jpeg_cost(runs[0], JPEG[name]))
  parts = [
    f'# `{config}`: {data}',
    told(runs),
    *(
      f'![{words}]({file})'
      for file, words in PICTURES.items()
      if (runs[0] / file).exists()
    ),
    *results,
    '## Method',
    f'    python main.py --config=configs/{config}.py{seed}',
    method(runs),
    '## Limits',
    LIMITS[name],
  ]
  return '\n\n'.join(parts) + '\n'


def answer(runs: list[pathlib.Path]) -> str:
  """Says in a sentence what the runs reached and what it took."""
  evals = [_read(run, 'eval.json') for run in runs]
  first, config = evals[0], _read(runs[0], 'config.json')['model']
  after = (
    f'After {summary.minutes(runs[0]):.0f} minutes of training on '
    f'{_read(runs[0], "versions.json")["cpus"]} CPU cores'
  )
  if 'top1' in first:
    values = sorted(row['top1'] for row in evals)
    reached = f'{values[0]:.3f}'
    if len(values) > 1:
      reached += f' to {values[-1]:.3f} over {len(values)} seeds'
    return (
      f'{after} `{config["block"]}` of size {config["variant"]} reaches a '
      f'top-1 of {reached} on the {first["num_examples"]:,} test images.'
    )
  label = 'FID' if first['calibrated'] else 'uncalibrated FID'
  return (
    f'{after} the {label} of translations from the test images of the other '
    f'kind is {first["fid"]:.3g} (mean of both directions); that of images '
    f'left as they are is {first["identity_fid"]:.3g}, that of an untrained '
    f'generator {first["untrained_fid"]:.3g}.'
  )


def jpeg_cost(run: pathlib.Path, name: str) -> str:
  """Says what the same run reaches on images re-encoded as JPEG."""
  ours, jpeg = (
    _read(folder, 'eval.json')['top1'] for folder in (run, run.parent / name)
  )
  return (
    f'[On images re-encoded as JPEG](../{name}) the same command reaches a '
    f'top-1 of {jpeg:.3f}: {ours - jpeg:+.3f} without JPEG, one seed each.'
  )


def cost(runs: list[pathlib.Path]) -> str:
  """Says how fast a run that was begun trains, and what its end would cost.

  By its own speed, and by plan.json, for one chip.
  """
  (run,) = runs
  files, plan = runs_lib.read(run), _read(run, 'plan.json')
  config, minutes = files.config, summary.minutes(run)
  total = durations.steps(
    config['duration'], steps_per_epoch=files.steps_per_epoch
  )
  steps, losses = files.metric('train/loss')
  planned = durations.in_words(total * plan['predicted_step_seconds'])
  here = total / steps[-1] * minutes / 60 / 24
  return (
    f'On {files.versions["cpus"]} CPU cores, in {config["model"]["dtype"]}, '
    f'the first {steps[-1]} of {total:,} steps took {minutes:.0f} minutes, '
    f'{steps[-1] * config["batch_size"] / minutes / 60:.0f} images a '
    f'second, so that all would take {here:.1f} days; the plan of one '
    f'{plan["chip"]}, in {plan["config"]["model"]["dtype"]}, says {planned} at '
    'best. The training loss fell from '
    f'{losses[0]:.2f} (mean of the first {steps[0]} steps) to {losses[-1]:.2f}.'
  )


def method(runs: list[pathlib.Path]) -> str:
  """Says what was trained, how long and with which versions."""
  run = runs_lib.read(runs[0])
  config, versions, model = run.config, run.versions, run.config['model']
  depth = f', {model["depth"]} blocks' if model['depth'] else ''
  libraries = ', '.join(f'{n} {versions[n]}' for n in ('jax', 'flax', 'optax'))
  return (
    f'`{model["block"]}` of size {model["variant"]}{depth}, '
    f'{config["data"]["image_size"]} px in patches of {model["patch_size"]}, '
    f'{versions["parameters"]:,} parameters; {run.last_step:,} steps at a '
    f'batch size of {config["batch_size"]}, `{config["optim"]["name"]}` at a '
    f'rate of {config["optim"]["learning_rate"]:g}. {libraries}. '
    '`config.json` has every key, `metrics.jsonl` and `diagnostics.csv` hold '
    'the curves.'
  )


def _read(run: pathlib.Path, file: str) -> Any:
  return json.loads((run / file).read_text())
