"""Files that are written whole, locked, or made by one process at a time."""
