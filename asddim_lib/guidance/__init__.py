"""Guidance: the longest stable step, a plan of scales, and how a pipeline draws with it."""
