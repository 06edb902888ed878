"""Work on vectors of images: search, what is wrong with a set, and which images to label."""
