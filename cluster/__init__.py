"""Ray, as the project uses it: connecting, placing work on nodes, planning, cloud templates."""
