"""Model families, one data file each: which tensors there are and what their dimensions mean.

Packages of others take the record for theirs from here.
"""

from prunecli.model.families._base import HEAD_SIZE, MEAN, Family, windows

__all__ = ["HEAD_SIZE", "MEAN", "Family", "windows"]
