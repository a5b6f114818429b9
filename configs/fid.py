"""FID and KID of any two sets of images.

    python main.py --mode=fid --config=configs/fid.py --config.a=X --config.b=Y
    python main.py --mode=fid --config=configs/fid.py:paper ...

X and Y are each a folder of images, `tfds:cycle_gan/monet2photo:testA` (with
`--config.dir=DIR`), `runs/NAME:a2b` (or `b2a`) for what a run's generator makes
of its test part, or an `.npz` file with `mu` and `sigma`, as pytorch-fid writes
it (its own have `--config.fid.resize=torch`, which is its range of inputs too).
The word `paper` sets what Table 2 of the paper was computed with: tap 64,
tf1, truncated, as many images as the smaller set has. Writes fid.json to
`--workdir`, by default runs/fid.

Hardware and time: 25 images a second on two CPU cores at tap 2048.

Expected: CycleGAN's horses to zebras, 2048 features: 77.2 with `--config.fid.
resize=tf1`, 75.2 with `clean`.
"""

from configs import common


def get_config(arg=''):
  """Builds the config; `arg` may be 'paper'."""
  return common.finish(common.comparison(), arg)
