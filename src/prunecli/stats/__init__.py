"""Statistics of activations, one file each, and the walks over a model that collect them."""
