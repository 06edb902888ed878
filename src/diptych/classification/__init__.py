"""Classifiers of images on a trained encoder: fitted on labelled images, kept, used on others."""
