"""Studies: one question of the papers each, answered by a grid of ordinary runs."""
