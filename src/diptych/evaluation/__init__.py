"""What an encoder has learned: features, probes, geometry, verdict."""
