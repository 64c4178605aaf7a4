"""Recipes: complete, typed descriptions of experiments. A variant is ``dataclasses.replace`` of one of them."""

from rllava.recipes.candidate import Candidate, named, parse_candidate, trial_name
from rllava.recipes.grid import PRESETS, Grid, check_grid

__all__ = ["PRESETS", "Candidate", "Grid", "check_grid", "named", "parse_candidate", "trial_name"]
