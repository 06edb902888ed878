"""Every setting of a run: sections, files of settings, recipes, and what goes together."""
