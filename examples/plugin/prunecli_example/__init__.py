"""A method and a family for prunecli, which finds them by the entry points of pyproject.toml."""
