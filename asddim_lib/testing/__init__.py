"""Models whose every answer is known in closed form, for tests."""
