"""A run folder, the record of its run, and how its files are written and read."""
