"""Pruning methods, one file each: the paper's formula over weights and statistics.

Packages of others take the records for theirs from here.
"""

from prunecli.methods._base import LayerView, Method, Option, RequiredStatistic

__all__ = ["LayerView", "Method", "Option", "RequiredStatistic"]
