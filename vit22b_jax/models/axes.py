"""Names of the logical axes of parameters and activations.

Models name axes; `runtime.sharding` maps names to mesh axes in one table.
Axes that are never worth splitting over devices are `None` in the models.
"""

# Activations.
BATCH = 'batch'
TOKENS = 'tokens'  # of the residual stream, where rows are on their own
LENGTH = 'length'  # of what looks at all tokens: projections and attention

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
LAYERS = 'layers'  # blocks stacked for a scan

# Axes that stay split in a product; of other axes it needs every part.
SPLIT_IN_PRODUCTS = (HEADS, MLP)
