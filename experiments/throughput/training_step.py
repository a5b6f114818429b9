"""Times one training step of ours and of PyTorch's, side by side.

    python -m experiments.throughput.training_step

Each of the four models of a size lives in a process of its own; the processes
take turns, one step each, and the others wait. Writes results.json,
environment.json and results.md beside this file.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

HERE = pathlib.Path(__file__).parent
BLOCKS = ('vit', 'vit22b')
PEERS = {
  'vit': 'timm ViT',
  'vit22b': 'timm ViT with ParallelScalingBlock',
}


def serve(
  connection: Connection, side: str, module: str, arguments: tuple[Any, ...]
) -> None:
  """Builds one model's step, then times it whenever it's asked to.

  Args:
    connection: first sends the number of parameters, then the seconds of a step
      for every True received, until a False.
    side: 'ours' or 'peer'.
    module: of this package; its `training_step` gives a step and a number of
      parameters.
    arguments: of that function.
  """
  if side == 'ours':
    from vit22b_jax.runtime import host

    host.prepare()  # as main.py does, before jax starts
  build = importlib.import_module(f'experiments.throughput.{module}')
  step, count = build.training_step(*arguments)
  connection.send(count)
  while connection.recv():
    start = time.perf_counter()
    step()
    connection.send(time.perf_counter() - start)


class Runner:
  """A model in a process of its own; see `serve`."""

  def __init__(self, side: str, module: str, *arguments: Any):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(
      target=serve, args=(theirs, side, module, arguments), daemon=True
    )
    self._process.start()
    theirs.close()  # so that a failure there ends the wait here
    self.parameters = self._connection.recv()

  def step(self) -> float:
    """Does one step; returns its seconds."""
    self._connection.send(True)
    return self._connection.recv()

  def close(self) -> None:
    self._connection.send(False)
    self._process.join()


def measure(
  variant: str, batch_size: int, warmup: int, repeats: int
) -> list[dict[str, Any]]:
  """Rows of results.json for one size.

  Args:
    variant: 'Ti' or 'S'.
    batch_size: images a step.
    warmup: steps of each model before the first that counts.
    repeats: rounds that count; in each, every model does one step.
  """
  sides = {'peer': ('peers', threads()), 'ours': ('ours',)}
  runners = {
    (side, block): Runner(side, module, block, variant, batch_size, *more)
    for block in BLOCKS
    for side, (module, *more) in sides.items()
  }
  medians = alternate(runners, warmup, repeats)
  for (side, block), runner in runners.items():
    print(f'{variant} {side} {block}: {runner.parameters:,} parameters')

  rows = [
    row(f'{block} {variant}', medians['ours', block], peer, medians[key])
    for block, peer, key in (
      ('vit', PEERS['vit'], ('peer', 'vit')),
      ('vit22b', PEERS['vit22b'], ('peer', 'vit22b')),
      ('vit22b', f'our vit {variant}', ('ours', 'vit')),
    )
  ]
  return rows


def alternate(
  runners: dict[Any, Runner], warmup: int, repeats: int
) -> dict[Any, float]:
  """Returns median seconds of a step of each runner, and closes them.

  Args:
    runners: by any key; they take turns, one step each.
    warmup: rounds before the first that counts.
    repeats: rounds that count.
  """
  seconds = {key: [] for key in runners}
  for _ in range(warmup + repeats):
    for key, runner in runners.items():
      seconds[key].append(runner.step())
  for runner in runners.values():
    runner.close()
  return {k: statistics.median(s[warmup:]) for k, s in seconds.items()}


def threads() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0))


def row(name: str, ours: float, peer: str, peers: float) -> dict[str, Any]:
  """Returns one comparison, from seconds."""
  return {
    'name': name,
    'ours_ms': round(ours * 1e3, 1),
    'peer': peer,
    'peer_ms': round(peers * 1e3, 1),
    'ratio': round(peers / ours, 3),
  }


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Formats the rows as Markdown."""
  lines = [
    '| model | ours, ms | peer | peer, ms | peer / ours |',
    '|---|--:|---|--:|--:|',
  ]
  lines += [
    f'| {r["name"]} | {r["ours_ms"]:,.0f} | {r["peer"]} | {r["peer_ms"]:,.0f} '
    f'| {r["ratio"]:.2f} |'
    for r in rows
  ]
  return '\n'.join(lines) + '\n'


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns what the numbers depend on."""
  cpu = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    lines = info.read_text().splitlines()
    names = [x.split(':')[1].strip() for x in lines if x.startswith('model na')]
    cpu = names[0] if names else cpu
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'timm')
  return {
    'date': datetime.date.today().isoformat(),
    'cpu': cpu,
    'cores': threads(),
    'load_average_before': round(os.getloadavg()[0], 2),
    'load_average_after': None,
    **{k: v for k, v in vars(arguments).items() if k != 'output'},
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
  }


def write(
  folder: pathlib.Path,
  results: str,
  rows: Sequence[dict[str, Any]],
  conditions: str,
  facts: dict[str, Any],
) -> None:
  """Writes RESULTS.json, RESULTS.md and CONDITIONS.json, and prints a table."""
  facts['load_average_after'] = round(os.getloadavg()[0], 2)
  text = table(rows)
  print(text)
  for name, content in ((results, rows), (conditions, facts)):
    (folder / f'{name}.json').write_text(json.dumps(content, indent=2) + '\n')
  (folder / f'{results}.md').write_text(text)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--variants', nargs='+', default=['S', 'Ti'])
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--warmup', type=int, default=2)
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument('--output', type=pathlib.Path, default=HERE)
  arguments = parser.parse_args()
  facts = environment(arguments)
  rows = []
  for variant in arguments.variants:
    rows += measure(
      variant, arguments.batch_size, arguments.warmup, arguments.repeats
    )
  write(arguments.output, 'results', rows, 'environment', facts)


if __name__ == '__main__':
  main()
