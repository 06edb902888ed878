"""Methods that need no dictionary of negatives."""
