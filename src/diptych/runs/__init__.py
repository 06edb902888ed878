"""A run folder, whose it is, and how its files are written and read."""
