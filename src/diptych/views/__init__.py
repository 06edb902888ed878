"""Random views: parameters drawn as a function, pixels made in one pass."""
