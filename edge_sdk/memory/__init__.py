"""Keep a process within the memory it was given."""
