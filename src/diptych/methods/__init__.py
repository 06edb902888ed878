"""What is trained: contrastive methods and distillation, their dictionaries and losses."""
