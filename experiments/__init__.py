"""The paper's experiment and what the book draws with: run by make and by chapters, in a clone."""

from experiments import rivals as rivals  # their grids enter the library's table
