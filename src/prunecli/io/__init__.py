"""Files: checkpoints, tensor files, sidecars and tokens."""
