"""Counts the parameters of each block and size, beside the paper's."""
