"""Search in vectors of images, and what is wrong with a set: copies, outliers, wrong labels."""
