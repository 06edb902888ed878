"""A local page that shows the images of a set on a map of their vectors, and takes labels."""
