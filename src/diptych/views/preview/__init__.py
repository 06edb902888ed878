"""The views of some images, shown to people before a run."""
