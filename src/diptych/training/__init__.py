"""From initial weights to trained ones: step, loop, state, checkpoints."""
