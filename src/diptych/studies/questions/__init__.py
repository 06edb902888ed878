"""The studies, a file for each question of the papers."""
