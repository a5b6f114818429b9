"""ViT against ViT-22B as classifiers, trained from scratch."""
