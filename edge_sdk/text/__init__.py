"""Private text as training examples, and examples as batches."""
