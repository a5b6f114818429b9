"""Times Inception's features, ours and torch-fidelity's, side by side.

    python -m experiments.throughput.inception

The same drawn weights, uint8 images of 256 px in, features out, so that both
sides resize (by `tf1`) as well. Each side lives in a process of its own and
they take turns, as in `training_step`. Writes inception.json and inception.md
beside this file.
"""

from typing import Any

from experiments.throughput import training_step


def measure(
  tap: int, batch_size: int, warmup: int, repeats: int
) -> dict[str, Any]:
  """Measures a row of inception.json.

  Args:
    tap: 64, 192, 768 or 2048.
    batch_size: images a step.
    warmup: steps of each side before the first that counts.
    repeats: rounds that count; in each, both sides do one step.
  """
  threads = training_step.threads()
  runners = {
    'peer': training_step.Runner(
      'peer', 'peers_inception', tap, batch_size, threads
    ),
    'ours': training_step.Runner('ours', 'ours_inception', tap, batch_size),
  }
  medians = training_step.alternate(runners, warmup, repeats)
  counts = {runner.parameters for runner in runners.values()}
  assert len(counts) == 1, counts
  row = training_step.row(
    f'Inception, tap {tap}, batch {batch_size}',
    medians['ours'],
    'torch-fidelity',
    medians['peer'],
  )
  for side in runners:
    row[f'{side}_features_per_second'] = round(batch_size / medians[side], 1)
  return row


def main() -> None:
  flags = training_step.parser(__doc__, training_step.HERE, repeats=9)
  flags.add_argument('--taps', nargs='+', type=int, default=[2048, 64])
  flags.add_argument('--batch_size', type=int, default=16)
  arguments = flags.parse_args()
  facts = training_step.environment(arguments)
  rows = [
    measure(tap, arguments.batch_size, arguments.warmup, arguments.repeats)
    for tap in arguments.taps
  ]
  for row in rows:
    print(
      f'{row["name"]}: {row["ours_features_per_second"]} features a second, '
      f'torch-fidelity {row["peer_features_per_second"]}'
    )
  training_step.write(arguments.output, 'inception', rows, facts)


if __name__ == '__main__':
  main()
