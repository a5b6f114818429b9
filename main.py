"""Trains, evaluates and uses models: see `python main.py --help`.

python main.py --config=configs/cifar100_vit22b_s.py
"""

from vit22b_jax import cli

if __name__ == '__main__':
  cli.main()
