"""Media to tensors and back."""
