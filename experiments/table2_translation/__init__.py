"""ViTUnets of either block, and the ResNet that they are measured against."""
