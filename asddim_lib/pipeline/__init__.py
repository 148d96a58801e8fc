"""A pipeline run, recorded and replayed along its own sampling path."""
