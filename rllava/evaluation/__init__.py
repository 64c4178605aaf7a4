"""The attack worker, and its Ray Data pipeline."""
