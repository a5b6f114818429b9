"""How many parameters each block has in each size, beside the paper's."""
