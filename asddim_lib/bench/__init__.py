"""Time and memory of the networks at full size."""
