"""The best grid for a pipeline, by drawing with it: searches, goals, and `tune`."""

from asddim_lib.tune.tune import tune as tune
