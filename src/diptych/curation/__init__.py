"""Work on sets of vectors: search, copies, outliers, doubtful labels, and what to label next."""
