"""Image formats that need more than a call of Pillow."""
