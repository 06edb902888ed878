"""Where images come from: found, decoded, ordered."""
