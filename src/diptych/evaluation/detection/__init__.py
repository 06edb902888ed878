"""Detection transfer: a Faster R-CNN on a run's ResNet and on an untrained one."""
