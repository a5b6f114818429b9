"""Writes Table 2's rows in Markdown."""

from experiments import documents
from experiments.runner import Row, Rows

DIRECTIONS = {'a2b': 'A to B', 'b2a': 'B to A'}
# Table 2 of the paper: FID A to B and B to A, at 256 px and in full training.
# It names columns by domain; that apple and Monet are A to B is our reading.
PAPER = {
  ('cycle_gan/apple2orange', 'ViT-S'): (2.430, 3.455),
  ('cycle_gan/apple2orange', 'ViT-22B-S'): (12.485, 8.503),
  ('cycle_gan/apple2orange', 'ViT-B'): (3.781, 1.872),
  ('cycle_gan/monet2photo', 'ViT-S'): (4.087, 5.332),
  ('cycle_gan/monet2photo', 'ViT-22B-S'): (2.357, 2.638),
  ('cycle_gan/monet2photo', 'ViT-B'): (2.154, 2.560),
}


def sections(rows: Rows) -> list[str]:
  """Returns the page's parts."""
  parts = []
  for preset, title in (
    ('paper', "The paper's preset"),
    ('default', 'The default preset'),
  ):
    facts = _facts(rows, preset)
    if facts:
      parts += [f'{title} ({facts}):', distances(rows, preset)]
  if any('patches' in row for row in rows.values()):
    parts += [
      'How much the patches show: differences of pixels across patch borders '
      'over those inside, and the share of the variance inside patches that '
      "an image's patches have in common; each beside that of real images.",
      patches(rows),
    ]
  return parts


def distances(rows: Rows, preset: str) -> str:
  """Returns fID and KID of each run and direction, with both anchors.

  Args:
    rows: of the runs.
    preset: 'paper' or 'default', as the rows hold them.
  """
  lines = []
  for row in rows.values():
    if preset not in row:
      continue
    found = row[preset]
    for number, (direction, name) in enumerate(DIRECTIONS.items()):
      published = PAPER.get((row['data'], row['generator']))
      lines.append(
        [
          row['data'].removeprefix('cycle_gan/'),
          row['generator'],
          f'{row["generator_parameters"] / 1e6:.1f}M',
          name,
          *(
            f'{found[f"{prefix}fid_{direction}"]:.4g}'
            for prefix in ('', 'identity_', 'untrained_')
          ),
          _kid(found, direction),
          f'{found[f"identity_kid_{direction}"]:.4f}',
          published[number] if published and preset == 'paper' else '-',
        ]
      )
  return documents.table(
    (
      'set',
      'generator',
      '#parameters',
      'direction',
      '#FID',
      '#of untouched images',
      '#untrained',
      '#KID',
      '#of untouched images',
      "#paper's FID",
    ),
    lines,
  )


def patches(rows: Rows) -> str:
  """Blockiness of each run and direction."""
  lines = [
    [
      row['data'].removeprefix('cycle_gan/'),
      row['generator'],
      name,
      *(f'{found[key]:.3f}' for key in ('ratio', 'ratio_real')),
      *(f'{found[key]:.3f}' for key in ('common', 'common_real')),
    ]
    for row in rows.values()
    for direction, name in DIRECTIONS.items()
    for found in [row['patches'][direction]]
  ]
  return documents.table(
    (
      'set',
      'generator',
      'direction',
      '#border / inside',
      '#real',
      '#shared texture',
      '#real',
    ),
    lines,
  )


def _facts(rows: Rows, preset: str) -> str:
  """Returns what belongs beside a distance; '' without one."""
  chosen = [row[preset] for row in rows.values() if preset in row]
  if not chosen:
    return ''
  first = chosen[0]
  calibrated = 'calibrated' if first['calibrated'] else 'uncalibrated'
  return (
    f'tap {first["tap"]}, resize {first["resize"]}, quantize '
    f'{first["quantize"]}, weights {first["weights_sha256"][:12]}, '
    f'{calibrated}; {_counts(chosen)}'
  )


def _counts(chosen: list[Row]) -> str:
  counts = dict.fromkeys((row['num_a'], row['num_b']) for row in chosen)
  return ' or '.join(f'{a} against {b} images' for a, b in counts)


def _kid(found: Row, direction: str) -> str:
  value, error = (found[f'{k}_{direction}'] for k in ('kid', 'kid_stderr'))
  return f'{value:.4f} ± {error:.4f}'
