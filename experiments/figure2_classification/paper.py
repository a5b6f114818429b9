"""Lists the numbers of the paper's Figure 2, read off its plots.

Its AUROC is averaged over test batches with absent classes counted as 0, so it
compares with no other.
"""

# set, block -> size -> top-1, top-5, AUROC
FIGURE2 = {
  ('cifar10', 'vit'): {
    'Ti': (0.752, 0.983, 0.966),
    'S': (0.754, 0.982, 0.967),
    'B': (0.748, 0.983, 0.965),
  },
  ('cifar10', 'vit22b'): {
    'Ti': (0.776, 0.984, 0.972),
    'S': (0.817, 0.991, 0.981),
    'B': (0.772, 0.984, 0.974),
  },
  ('cifar100', 'vit'): {
    'Ti': (0.462, 0.736, 0.755),
    'S': (0.449, 0.729, 0.692),
    'B': (0.471, 0.748, 0.697),
  },
  ('cifar100', 'vit22b'): {
    'Ti': (0.495, 0.774, 0.671),
    'S': (0.504, 0.790, 0.693),
    'B': (0.527, 0.802, 0.712),
  },
}
