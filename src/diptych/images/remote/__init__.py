"""Images behind URLs."""
