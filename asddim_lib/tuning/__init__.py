"""The sampler whose pictures are best for a pipeline, a number of steps and a guidance scale."""
