"""A pipeline measured along its own sampling path."""
