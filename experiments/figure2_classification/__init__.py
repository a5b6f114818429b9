"""Compares ViT and ViT-22B as classifiers, trained from scratch."""
