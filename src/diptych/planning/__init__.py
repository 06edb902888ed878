"""Scale on paper: what a run will cost before it starts, and which part breaks first."""
