"""The state of a run on disk: format, stores, saving, loading."""
