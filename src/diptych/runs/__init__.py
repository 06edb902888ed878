"""A run folder: what it holds, how its files are written, and who the run is."""
