"""The best grid for a pipeline, by drawing with it."""
