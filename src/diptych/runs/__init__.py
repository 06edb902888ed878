"""A run's folder: its files, what it records of itself, safetensors files."""
