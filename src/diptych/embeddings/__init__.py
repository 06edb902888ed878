"""Embeddings on disk: computed in shards, and read back."""
