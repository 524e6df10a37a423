"""From the updates of a round to the next adapter, in NumPy; pure but for one temporary file."""
