"""Finds what explodes in ViT-22B's block, where, and what cures it."""
