"""Model families, one data file each: which tensors there are and what their dimensions mean."""
