"""From initial weights to trained ones: the step, the loop, the state of a run."""
