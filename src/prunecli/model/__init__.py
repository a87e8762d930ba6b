"""Models: families, shapes, checkpoints, and one layer in memory at a time."""
