"""What explodes in ViT-22B's block, where first, and which change cures it."""
