"""Classifiers trained by SGD: fine-tuning, and a linear one on the frozen encoder."""
