"""Records -> statistics -> Pareto fronts -> tables, plots and an HTML report. Needs neither torch nor ray."""
