"""Models with closed-form answers, for tests."""
