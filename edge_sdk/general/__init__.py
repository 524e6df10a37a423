"""Training on any Hugging Face model: its base, its ranks by autograd, and what that costs."""
