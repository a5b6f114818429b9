"""Times one CycleGAN step of ours and of PyTorch's, side by side.

    python -m experiments.throughput.translation_step

Two ViTUnet-S of 64 px, patch 8, two 70x70 PatchGANs, both optimizers, pools.
Each side lives in a process of its own and they take turns, as in
`training_step`. Writes translation.json and translation.md beside this file.
"""

from typing import Any

from experiments.throughput import training_step

IMAGE_SIZE, PATCH = 64, 8
PEERS = {
  'PyTorch': 'contiguous_format',
  'PyTorch, channels last': 'channels_last',
}


def measure(batch_size: int, warmup: int, repeats: int) -> list[dict[str, Any]]:
  """Rows of translation.json for one batch size.

  Args:
    batch_size: images of each domain a step.
    warmup: steps of each side before the first that counts.
    repeats: rounds that count; in each, every side does one step.
  """
  sizes = (batch_size, IMAGE_SIZE, PATCH)
  runners = {
    name: training_step.Runner(
      'peer', 'peers_translation', *sizes, layout, training_step.threads()
    )
    for name, layout in PEERS.items()
  }
  runners['ours'] = training_step.Runner('ours', 'ours_translation', *sizes)
  medians = training_step.alternate(runners, warmup, repeats)
  for name, runner in runners.items():
    print(f'batch {batch_size} {name}: {runner.parameters:,} parameters')
  return [
    training_step.row(
      f'CycleGAN, ViTUnet S/{PATCH}, {IMAGE_SIZE} px, batch {batch_size}',
      medians['ours'],
      name,
      medians[name],
    )
    for name in PEERS
  ]


def main() -> None:
  flags = training_step.parser(__doc__, training_step.HERE, repeats=11)
  flags.add_argument('--batch_sizes', nargs='+', type=int, default=[1, 4])
  arguments = flags.parse_args()
  facts = training_step.environment(arguments)
  rows = []
  for batch_size in arguments.batch_sizes:
    rows += measure(batch_size, arguments.warmup, arguments.repeats)
  training_step.write(arguments.output, 'translation', rows, facts)


if __name__ == '__main__':
  main()
