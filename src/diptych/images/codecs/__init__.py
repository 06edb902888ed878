"""Image formats: each from bytes to pixels with their meaning, as the file stores them."""
