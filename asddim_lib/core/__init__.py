"""The paper, equation by equation: pure functions of numbers and tensors."""
