"""Times a training step with the spatial ViTUnet and with the ResNet, in turns.

    python -m experiments.spatial_parts.speed

Writes speed.json and speed.md beside this file, rows of each processor apart.
"""

import pathlib

from experiments.throughput import training_step

NAMES = {'ours': '', 'ResNet of nine blocks': 'resnet'}


def main() -> None:
  folder = pathlib.Path(__file__).parent
  given = training_step.parser(__doc__, folder, 15, warmup=3).parse_args()
  facts = training_step.environment(given)
  runners = {
    name: training_step.Runner('ours', 'ours_generators', words)
    for name, words in NAMES.items()
  }
  name = 'CycleGAN, spatial ViTUnet Ti of six blocks, 64 px, batch 1'
  rows = training_step.compare(name, runners, given.warmup, given.repeats)
  training_step.write(given.output, 'speed', rows, facts)


if __name__ == '__main__':
  main()
