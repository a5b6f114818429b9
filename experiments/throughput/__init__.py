"""Times a training step beside PyTorch's."""
