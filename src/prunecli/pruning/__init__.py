"""Pruning: statistics, scores, plan, surgery; weight masks; masks that are trained."""
