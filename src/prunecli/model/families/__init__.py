"""Model families, one data file each: which tensors there are and what their dimensions mean.

Packages of others take the record for theirs from here.
"""

from prunecli.model.families._base import HEAD_SIZE, MEAN, Experts, Family, windows
from prunecli.model.families._kinds import each_of, of_types, sized

__all__ = ["HEAD_SIZE", "MEAN", "Experts", "Family", "each_of", "of_types", "sized", "windows"]
