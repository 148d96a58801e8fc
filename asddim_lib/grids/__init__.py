"""Step count and evidence in, grid out."""
