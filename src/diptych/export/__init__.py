"""Doors out: a trained encoder in the formats of other libraries, each read back and compared."""
