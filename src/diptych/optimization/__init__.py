"""How weights move: optimizers and learning rates, for pretraining and for evaluation alike."""
