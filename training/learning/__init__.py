"""What fits weights: losses, augmentation, the loop and its checkpoints, cross-validation."""
