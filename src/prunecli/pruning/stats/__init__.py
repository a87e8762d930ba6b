"""Statistics, one file each, and the hooks that collect them while a model is walked."""
