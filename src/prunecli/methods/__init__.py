"""Pruning methods, one file each: the paper's formula over weights and statistics."""
