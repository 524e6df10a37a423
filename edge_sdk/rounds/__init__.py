"""A device's part in rounds: plan, check in, train, keep what is done, send it once."""
