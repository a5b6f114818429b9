"""The command line as a module: `python -m vit22b_jax`, like `vit22b`."""

from vit22b_jax import cli

if __name__ == '__main__':
  cli.main()
