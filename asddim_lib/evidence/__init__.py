"""What was measured on a model: the path, the adjoint sweep back over it, and the profile of both."""
