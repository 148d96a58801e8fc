"""What was measured on a model: its path, the adjoint sweep back, and the profile of both."""
