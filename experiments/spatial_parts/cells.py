"""The runs that tell which part of the spatial ViTUnet does what."""

from experiments.runner import Cell, Rows

STEPS = 500
# What the page calls them.
NAMES = {
  'space': 'space',
  'resnet': 'ResNet of nine blocks',
  'no_residual': 'no residual to the input',
  'no_fine_maps': 'no maps finer than a patch',
  'pixel_shuffle': 'PixelShuffle',
  'transposed': 'transposed convolutions',
  'instance_norm': 'instance norm on the way out',
  'cut_patches': 'patches that do not overlap',
}
# Too near to each other for one seed to tell.
TWICE = ('space', 'pixel_shuffle')
_CONFIG = 'configs/monet2photo_vitunet_ti_cpu.py'


def cells(scale: str, rows: Rows) -> list[Cell]:
  """Lists all runs, the same 500 steps of apples and oranges at 64 px each."""
  del scale, rows
  return [_cell(name, 0) for name in NAMES] + [_cell(n, 1) for n in TWICE]


def variant(cell: Cell) -> str:
  """Returns which of `variants.VARIANTS` a run trains; 'space' for a ResNet."""
  return cell.program[-1] if len(cell.program) > 1 else 'space'


def _cell(name: str, seed: int) -> Cell:
  config, program = _CONFIG, ('main.py',)
  if name == 'resnet':
    config = f'{_CONFIG}:resnet'
  elif name != 'space':
    program = ('-m', 'experiments.spatial_parts.train', name)
  return Cell(
    name=name if not seed else f'{name}_seed_{seed}',
    config=config,
    program=program,
    keys={
      'data.name': 'cycle_gan/apple2orange',
      'data.image_size': 64,
      'data.load_size': 72,
      'duration': f'{STEPS} steps',
      'checkpoint.every': '100 steps',
      'eval.every': f'{STEPS} steps',
      'log.samples': f'{STEPS} steps',
      'log.tensorboard': False,
      'fid.num': 'all',
      **({'seed': seed} if seed else {}),
    },
    facts={
      'data': 'cycle_gan/apple2orange',
      'generator': NAMES[name] + (f', seed {seed}' if seed else ''),
    },
  )
