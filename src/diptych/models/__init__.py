"""Networks: encoders, heads, norms, the momentum encoder, and the trained encoder as a file."""
