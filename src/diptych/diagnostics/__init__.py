"""What is wrong with a run, or good: leak, ranking, verdict."""
