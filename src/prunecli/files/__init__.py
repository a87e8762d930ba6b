"""Files: tensor files, sidecars, and where results go."""
