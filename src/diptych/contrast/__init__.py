"""Queries, keys, dictionaries and losses, and the method they make."""
