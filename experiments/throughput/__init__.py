"""One training step against PyTorch's, side by side."""
