"""Names of the logical axes of parameters and activations.

Models name axes; `vit22b_jax.sharding` maps names to mesh axes in one table.
Axes that are never worth splitting over devices are `None` in the models.
"""

# Activations.
BATCH = 'batch'
LENGTH = 'length'

# Parameters (and, for heads and the MLP's hidden units, activations).
EMBED = 'embed'  # model width D, where it is a matrix axis
HEADS = 'heads'  # attention heads N
HEAD_DIM = 'head_dim'  # one head's slice: q, k, v and its share of the MLP
MLP = 'mlp'  # hidden units F
CLASSES = 'classes'  # output classes
PATCH = 'patch'  # pixels of a patch times channels
POSITION = 'position'  # token positions of a position embedding
CHANNELS_IN = 'channels_in'  # what a convolution sums over
CHANNELS = 'channels'  # what a convolution makes
NORM = 'norm'  # norm scales and biases, and vectors added to the stream
