"""Times one training step of ours and of PyTorch's, side by side.

    python -m experiments.throughput.training_step

Each model lives in a process of its own; those that are compared take turns,
one step each, while the others wait. Writes results.json and results.md beside
this file, in which it replaces what it has measured on this processor before.
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
import shutil
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from experiments import documents

HERE = pathlib.Path(__file__).parent
# Peers by our block: their name, module, and whether torch compiles them.
EAGER, COMPILED = False, True
PARALLEL = 'timm ViT with ParallelScalingBlock'
PEERS = {
  'vit': {
    'timm ViT': ('peers', EAGER),
    'timm ViT, compiled': ('peers', COMPILED),
    'plain Flax ViT': ('peers_flax',),
  },
  'vit22b': {
    PARALLEL: ('peers', EAGER),
    f'{PARALLEL}, compiled': ('peers', COMPILED),
  },
}
# Our own models beside `vit22b`, by their name with the size left out: block,
# and whether it has QK-norm.
OURS = {
  'our vit {}': ('vit', False),
  'our vit {} with QK-norm': ('vit', True),
  'our vit22b {} without QK-norm': ('vit22b', False),
}
# Of AMD by family and model, where the processor's name leaves it out.
ZEN = {(25, False): 'Zen 3', (25, True): 'Zen 4', (26, True): 'Zen 5'}


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

  Compiled peers are left out where no C++ compiler is.

  Args:
    variant: 'Ti' or 'S'.
    batch_size: images a step.
    warmup: steps of each model before the first that counts.
    repeats: rounds that count; in each, every model does one step.
  """
  size, rows = (variant, batch_size), []
  for block, peers in PEERS.items():
    runners = {'ours': Runner('ours', 'ours', block, *size)}
    for name, (module, *compiled) in peers.items():
      if compiled == [COMPILED] and not shutil.which('g++'):
        print(f'{name} is left out: torch.compile needs g++')
      elif module == 'peers':
        given = (block, *size, threads(), *compiled)
        runners[name] = Runner('peer', module, *given)
      else:
        runners[name] = Runner('peer', module, *size)
    rows += compare(f'{block} {variant}', runners, warmup, repeats)
  runners = {'ours': Runner('ours', 'ours', 'vit22b', *size)}
  for name, (block, norms) in OURS.items():
    given = (block, *size, norms)
    runners[name.format(variant)] = Runner('ours', 'ours', *given)
  return rows + compare(f'vit22b {variant}', runners, warmup, repeats)


def compare(
  name: str, runners: dict[str, Runner], warmup: int, repeats: int
) -> list[dict[str, Any]]:
  """Times 'ours' beside the others; a row for each of those."""
  medians = alternate(runners, warmup, repeats)
  for key, runner in runners.items():
    print(f'{name}, {key}: {runner.parameters:,} parameters')
  ours = medians.pop('ours')
  return [row(name, ours, peer, seconds) for peer, seconds in medians.items()]


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


def table(found: dict[str, Any]) -> str:
  """Formats the rows of all processors as Markdown, side by side.

  Args:
    found: by the processor's name its 'environment' and 'rows'.
  """
  columns, lines = ['model', 'peer'], {}
  for i, (name, measured) in enumerate(found.items()):
    cores = measured['environment']['cores']
    columns += [
      f'#{cores} cores of {name}: ours, ms',
      '#peer, ms',
      '#peer / ours',
    ]
    for r in measured['rows']:
      line = lines.setdefault((r['name'], r['peer']), ['-'] * 3 * len(found))
      numbers = (
        f'{r["ours_ms"]:,.0f}',
        f'{r["peer_ms"]:,.0f}',
        f'{r["ratio"]:.2f}',
      )
      line[3 * i : 3 * i + 3] = numbers
  return documents.table(
    columns, [[*key, *line] for key, line in lines.items()]
  )


def processor(info: str) -> str:
  """Returns the name of the processor in the text of /proc/cpuinfo.

  The generation is added to AMD's names that don't tell it, since ratios differ
  between generations.
  """
  facts = {}
  for line in info.splitlines():
    key, _, value = line.partition(':')
    facts.setdefault(key.strip(), value.strip())
  name = facts.get('model name', platform.processor() or platform.machine())
  family, model = (int(facts.get(k, 0)) for k in ('cpu family', 'model'))
  newer = family > 25 or 16 <= model < 32 or model >= 96  # not Zen 3's
  zen = ZEN.get((family, newer))
  return f'{name} ({zen})' if zen and 'AMD' in name else name


def parser(
  description: str, folder: pathlib.Path, repeats: int, warmup: int = 2
) -> argparse.ArgumentParser:
  """Returns the flags of a benchmark that writes into a folder by default."""
  made = argparse.ArgumentParser(description=description.split('\n')[0])
  made.add_argument('--warmup', type=int, default=warmup)
  made.add_argument('--repeats', type=int, default=repeats)
  made.add_argument('--output', type=pathlib.Path, default=folder)
  return made


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns what the numbers depend on."""
  info = pathlib.Path('/proc/cpuinfo')
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'timm')
  return {
    'date': datetime.date.today().isoformat(),
    'cpu': processor(info.read_text() if info.exists() else ''),
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
  facts: dict[str, Any],
) -> None:
  """Adds rows of this processor to RESULTS.json, and writes RESULTS.md.

  They replace those of the same models and peers; `environment` becomes
  `facts`, those of the last run.
  """
  facts['load_average_after'] = round(os.getloadavg()[0], 2)
  path = folder / f'{results}.json'
  found = json.loads(path.read_text()) if path.exists() else {}
  before = found.get(facts['cpu'], {'rows': ()})['rows']
  named = {(r['name'], r['peer']): r for r in (*before, *rows)}
  found[facts['cpu']] = {'environment': facts, 'rows': list(named.values())}
  path.write_text(json.dumps(found, indent=2) + '\n')
  text = table(found) + '\n'
  print(text)
  path.with_suffix('.md').write_text(text)


def main() -> None:
  flags = parser(__doc__, HERE, repeats=9)
  flags.add_argument('--variants', nargs='+', default=['S', 'Ti'])
  flags.add_argument('--batch_size', type=int, default=64)
  arguments = flags.parse_args()
  facts = environment(arguments)
  rows = []
  for variant in arguments.variants:
    rows += measure(
      variant, arguments.batch_size, arguments.warmup, arguments.repeats
    )
  write(arguments.output, 'results', rows, facts)


if __name__ == '__main__':
  main()
