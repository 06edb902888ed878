"""Networks: encoders, heads, the twin, and the trained encoder as a file."""
