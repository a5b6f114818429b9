"""Writes the plans that this folder shows, one file for each: plans/NAME.json.

    python -m experiments.scaling.plans [NAME ...]

Each is what `main.py --mode=plan` writes for the command in COMMANDS, and how
far its batch could be doubled. What is there already is left; name a plan to
make it anew. Needs libtpu, no TPU.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import tempfile

import jax

from vit22b_jax.plan import planner, rendering, search, topologies

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
PLANS = HERE / 'plans'

# The full size with as many microbatches as make it fit, on each generation;
# and the sizes that one board carries.
COMMANDS = {
  '22b_v4_8x8x16': 'vit22b_22b --topology=v4:8x8x16',
  '22b_v4_8x8x16_one_axis': (
    'vit22b_22b --topology=v4:8x8x16 --config.mesh.fsdp=1024'
  ),
  '22b_v5p_8x8x8': 'vit22b_22b --topology=v5p:8x8x8',
  '22b_v5e_16x16': (
    'vit22b_22b --topology=v5e:16x16 --config.model.remat=full '
    '--config.optim.accumulate=8'
  ),
  '22b_v6e_16x16': (
    'vit22b_22b --topology=v6e:16x16 --config.optim.accumulate=8'
  ),
  '22b_h100_1024': 'vit22b_22b --topology=h100:1024',
  'h_v5e_2x4': 'imagenet_vit22b_h --topology=v5e:2x4',
  'l_v5e_2x4': 'imagenet_vit22b_l --topology=v5e:2x4',
}


def command(name: str) -> list[str]:
  """Returns the arguments of main.py for a plan."""
  config, *rest = shlex.split(COMMANDS[name])
  return ['--mode=plan', f'--config=configs/{config}.py', *rest]


def main(names: list[str]) -> None:
  """Makes the named plans, or those that are missing."""
  PLANS.mkdir(exist_ok=True)
  missing = [n for n in COMMANDS if not (PLANS / f'{n}.json').exists()]
  for name in names or missing:
    print(f'\n{name}: python main.py {" ".join(command(name))}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
      subprocess.run(
        [sys.executable, 'main.py', *command(name), f'--workdir={folder}'],
        cwd=ROOT,
        check=True,
      )
      plan = json.loads((pathlib.Path(folder) / 'plan.json').read_text())
    hardware = topologies.find(plan['topology'])

    def make(config, hardware=hardware):
      made = planner.plan(config, hardware)
      print(rendering.line(made), flush=True)
      return made

    plan |= search.largest(plan, make)
    plan['command'] = f'python main.py {" ".join(command(name))}'
    (PLANS / f'{name}.json').write_text(json.dumps(plan, indent=1) + '\n')


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')  # libtpu must not look for TPUs
  main(sys.argv[1:])
