"""The paper's experiment and what the book draws with: run by make and by chapters, in a clone."""
